//! One run: derivations are handed over, submitted and done, and everything that costs is measured on the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::client::{Client, Ended};
use crate::crew::{Hired, Work};
use crate::farm::Farm;
use crate::figures::{Cost, Figures};
use crate::recipe::Recipes;
use crate::tally::Tally;

/// Hands derivations over and submits them; returns what that cost, and the build.
///
/// # Errors
/// What the farm said.
pub async fn submit(farm: &Farm, client: &Client, recipes: &Recipes, number: u64) -> anyhow::Result<(Submitted, kiln_wire::BuildId)> {
    let (adding, submitting) = add(farm, client, recipes).await?;
    let build = client.submit(recipes, number).await?;
    let submitting = submitting.end(farm, client).await?;
    Ok((Submitted { adding, submitting }, build))
}

/// Hands derivations over; returns what that cost, and begins to measure what follows.
async fn add(farm: &Farm, client: &Client, recipes: &Recipes) -> anyhow::Result<(Cost, Cost)> {
    let adding = Cost::begin(farm, client).await?;
    client.add(recipes).await?;
    adding.then(farm, client).await
}

/// What a submission cost.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// Of handing over the files.
    pub adding: Cost,
    /// Of the submission itself.
    pub submitting: Cost,
}

/// Has recipes done from hand-over to the end of the build.
///
/// # Errors
/// What the farm said, or that it took longer than `limit`.
pub async fn run(
    farm: &Farm,
    client: &Client,
    hired: &Hired,
    recipes: Recipes,
    work: Work,
    number: u64,
    limit: Duration,
) -> anyhow::Result<Figures> {
    let recipes = Arc::new(recipes);
    let tally = Arc::new(Tally::new(recipes.clone()));
    hired.set_to(work, tally.clone());
    let all = Cost::begin(farm, client).await?;
    let (adding, submitting) = add(farm, client, &recipes).await?;
    let build = client.submit(&recipes, number).await?;
    tally.submitted();
    let begin = Instant::now();
    // By one look: what the farm does between is in one of both.
    let (submitting, doing) = submitting.then(farm, client).await?;
    let ended: Ended = match tokio::time::timeout(limit, client.follow(build)).await {
        Ok(ended) => ended?,
        Err(_) => {
            let (received, _) = tally.received_within();
            let troubles = hired.troubles();
            client.cancel(build).await.context("give up")?;
            anyhow::bail!("after {limit:?} {received} of {} jobs were received; workers say {troubles:?}", recipes.all.len());
        }
    };
    let wall = begin.elapsed();
    // A build has ended when all of it is committed. What nobody waits for any more stays until it is published.
    tokio::time::timeout(limit, client.wait_until_empty()).await.context("wait until everything is published")??;
    let published = begin.elapsed();
    let (doing, all) = (doing.end(farm, client).await?, all.end(farm, client).await?);
    Ok(Figures {
        jobs: recipes.all.len(),
        submitted: Submitted { adding, submitting },
        doing,
        all,
        wall,
        published,
        // Asked after all is measured: to answer costs the leader too.
        fetchable: client.fetchable(ended.view.outputs.values().flat_map(|outputs| outputs.values())).await?,
        making: tally.making(),
        reported: tally.reported_within(),
        ready_per_second: tally.ready_per_second(),
        received: tally.received_within(),
        receipts: tally.receipts(),
        hops: tally.hops(),
        ended,
        troubles: hired.troubles(),
    })
}
