//! What a hook does, whether it works by itself or an agent does so for it: answers Nix, and builds what it took.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use kiln_nix::hook::{Ask, Inputs, Reply, Settings, line};
use kiln_wire::client::{Request, Response};
use kiln_wire::{BuildId, OutputName, Patience, Root, StoreDir, StorePath};

use super::decide::{Decision, decide};
use super::follow::{Ended, follow};
use super::inputs::{self, Lacking};
use super::locks::Locks;
use super::nixes::{Nixes, Ready};
use super::outputs::{self, Wanted};
use super::said::Answered;
use super::voice::{Voice, note};
use super::way::Way;
use crate::client::{self, Client, unexpected};
use crate::import::Places;
use crate::submission::{self, Held, submit_held};
use crate::words;

/// A farm, and the Nix of this machine: what hooks share.
pub(super) struct Farm {
    client: Client,
    store_dir: StoreDir,
    /// What Nix calls whoever builds.
    name: String,
    nixes: Arc<Nixes>,
}

/// One hook.
pub(super) struct Hook {
    farm: Arc<Farm>,
    settings: Settings,
    places: Places,
    locks: Locks,
    voice: Voice,
}

/// What became of a question, beside what Nix was told.
pub(super) enum Answer {
    /// Nix may ask for something else.
    No,
    /// Nix asks no further.
    NoForGood,
    /// Nix says next what the build needs.
    Taken(Box<Accepted>),
}

/// A build that is taken, before Nix has said what it needs.
pub(super) struct Accepted {
    ask: Ask,
    lacking: Lacking,
    nix: Ready,
}

impl Answer {
    /// Returns what the hook's side is told of it.
    pub(super) fn answered(&self) -> Answered {
        match self {
            Self::No => Answered::No,
            Self::NoForGood => Answered::NoForGood,
            Self::Taken(_) => Answered::Taken,
        }
    }
}

impl Farm {
    /// Connects. `keeps`: further hooks will come, and what they share is kept for them.
    pub(super) async fn open(way: &Way, keeps: bool) -> anyhow::Result<Arc<Self>> {
        let client = Client::open(&way.farm).await?;
        let store_dir = client.status().await?.store_dir;
        let name = way.farm.farm.clone().unwrap_or_else(|| "kiln".to_owned());
        let nixes = Nixes::new(way.nix_daemon.clone(), store_dir.clone(), keeps);
        Ok(Arc::new(Self { client, store_dir, name, nixes }))
    }
}

/// Tells Nix that a farm cannot be reached, and that it need not ask again.
pub(super) async fn decline_for_good(voice: &Voice, error: &anyhow::Error) -> Answer {
    voice.say(note(&format!("kiln: Nix builds by itself: {error:#}"))).await;
    voice.say(Reply::DeclineForGood.to_text()).await;
    Answer::NoForGood
}

impl Hook {
    pub(super) fn new(farm: Arc<Farm>, way: &Way, settings: Settings, voice: Voice) -> anyhow::Result<Self> {
        let objects = settings.objects_dir(&farm.store_dir);
        let objects = objects.with_context(|| format!("the store `{}` is not on this machine", settings.store))?;
        let places = Places { dirs: vec![PathBuf::from(objects)], ..Places::default() };
        let locks = Locks::open(way.locks.clone(), way.builds_max)?;
        Ok(Self { farm, settings, places, locks, voice })
    }

    /// Answers a question of Nix.
    ///
    /// # Errors
    /// What Nix says is no question.
    pub(super) async fn answer(&self, question: &[u8]) -> anyhow::Result<Answer> {
        let ask = Ask::decode(&self.farm.store_dir, question)?;
        let (reply, why, accepted) = match self.consider(&ask).await {
            Ok((Decision::Accept, accepted)) => (Reply::Accept(&self.farm.name), None, accepted),
            Ok((Decision::Decline(why), _)) => (Reply::Decline, Some(why), None),
            Ok((Decision::Postpone, _)) => (Reply::Postpone, None, None),
            Err(error) if words::exit_code_of(&error) == ExitCode::from(words::UNREACHABLE) => {
                // Each further question would wait as long for a farm that is gone.
                return Ok(decline_for_good(&self.voice, &error).await);
            }
            Err(error) => (Reply::Decline, Some(format!("{error:#}")), None),
        };
        if let Some(why) = why {
            self.voice.say(note(&format!("kiln: not built on the farm: {}: {why}", ask.derivation))).await;
        }
        self.voice.say(reply.to_text()).await;
        Ok(accepted.map_or(Answer::No, |(lacking, nix)| Answer::Taken(Box::new(Accepted { ask, lacking, nix }))))
    }

    /// Takes up a build that Nix was told is taken, by an agent that is gone.
    ///
    /// # Errors
    /// Why it cannot be built on the farm any more.
    pub(super) async fn take_up(&self, question: &[u8]) -> anyhow::Result<Accepted> {
        let ask = Ask::decode(&self.farm.store_dir, question)?;
        let nix = self.farm.nixes.ready(&self.settings.store, &self.outputs_of(&ask)?)?;
        let lacking = inputs::look(&self.farm.client, &self.farm.store_dir, &self.places, &ask.derivation).await?;
        Ok(Accepted { ask, lacking, nix })
    }

    /// Decides about a question; with what the farm lacks and a local Nix, if it is to build.
    async fn consider(&self, ask: &Ask) -> anyhow::Result<(Decision, Option<(Lacking, Ready)>)> {
        // Nix waits for the answer, and asks nothing else meanwhile.
        let client = self.farm.client.clone().with_patience(client::Patience::Short);
        let workers = match client.one(&Request::Workers).await? {
            Response::Workers(workers) => workers,
            _ => return Err(unexpected("another kind").into_error()),
        };
        let could_begin = ask.could_begin && self.settings.could_build(&ask.system, &ask.features);
        let decision = decide(&ask.system, &ask.features, &workers, could_begin);
        if !matches!(decision, Decision::Accept) {
            return Ok((decision, None));
        }
        if !self.locks.take_turn()? {
            let why = "as many builds as may be are on the farm";
            return Ok((if could_begin { Decision::Decline(why.to_owned()) } else { Decision::Postpone }, None));
        }
        let outputs = self.outputs_of(ask)?;
        if outputs.is_empty() {
            let why = "its outputs have no paths before they are built, and this hook does not bring such; build it with --store";
            return Ok((Decision::Decline(why.to_owned()), None));
        }
        // What must be started for it starts while others work.
        let nix = self.farm.nixes.ready(&self.settings.store, &outputs)?;
        let lacking = inputs::look(&client, &self.farm.store_dir, &self.places, &ask.derivation).await?;
        for job in &lacking.jobs {
            if let Decision::Decline(why) = decide(&job.system, &job.required_features, &workers, could_begin) {
                return Ok((Decision::Decline(format!("it needs `{}`, which the farm lacks: {why}", job.derivation)), None));
            }
        }
        Ok((Decision::Accept, Some((lacking, nix))))
    }

    /// Returns the paths of the outputs, all of which Nix has locked; none if one of them is not known.
    fn outputs_of(&self, ask: &Ask) -> anyhow::Result<Vec<StorePath>> {
        let (root, _) = inputs::read(&self.places, &self.farm.store_dir, &ask.derivation)?;
        Ok(root.outputs.values().map(|output| output.path().cloned()).collect::<Option<Vec<_>>>().unwrap_or_default())
    }

    /// Builds what was taken, with what Nix says of it, and returns with what to exit. `gone` ends when nobody wants it any more.
    pub(super) async fn build(&self, accepted: Accepted, inputs: &[u8], gone: impl Future<Output = ()>) -> u8 {
        let derivation = accepted.ask.derivation.clone();
        let submitted = OnceLock::new();
        let built = tokio::select! {
            built = self.carry_out(accepted, inputs, &submitted) => Some(built),
            () = gone => None,
        };
        let Some(built) = built else {
            if let Some(build) = submitted.get() {
                submission::cancel(&self.farm.client, *build).await;
            }
            return FAILED_OTHERWISE;
        };
        let (code, why) = match built {
            Ok(Ended::Built) => return words::SUCCESS,
            Ok(Ended::Failed(why)) => (FAILED_FOR_GOOD, why),
            Ok(Ended::TimedOut(why)) => (TIMED_OUT, why),
            Ok(Ended::Otherwise(why)) => (FAILED_OTHERWISE, why),
            Err(error) => (FAILED_OTHERWISE, format!("kiln: build {derivation} on the farm: {error:#}")),
        };
        self.voice.say(line::error(&why)).await;
        code
    }

    async fn carry_out(&self, accepted: Accepted, inputs: &[u8], submitted: &OnceLock<BuildId>) -> anyhow::Result<Ended> {
        let Farm { client, store_dir, nixes, .. } = &*self.farm;
        let Accepted { ask, lacking, nix } = accepted;
        let inputs = Inputs::decode(store_dir, inputs)?;
        let outputs: Vec<StorePath> = lacking.root.outputs.values().filter_map(|output| output.path().cloned()).collect();
        let locked = outputs.iter().cloned().collect();
        let wanted = Wanted { paths: wanted(&ask, &lacking, &inputs)?, locked, store: self.settings.store.clone() };
        self.hand_over(&ask, &lacking, &inputs).await?;
        let (build, mut held) = self.submit(&ask, &inputs).await?;
        let build = *submitted.get_or_init(|| build);
        let ended = follow(client, store_dir, &self.voice, build, &ask.derivation, &mut held).await;
        if let Err(error) = ended {
            submission::cancel(client, build).await;
            return Err(error);
        }
        held.release().await;
        if let Ok(Ended::Built) = &ended {
            let used = outputs::bring(client, store_dir, nixes, nix, wanted).await?;
            nixes.done(used, &self.settings.store, &self.places, &ask.derivation, &outputs).await;
        }
        ended
    }

    async fn hand_over(&self, ask: &Ask, lacking: &Lacking, inputs: &Inputs) -> anyhow::Result<()> {
        if lacking.is_nothing() {
            return Ok(());
        }
        let staging = format!("copying what {} needs to {}", ask.derivation.name(), self.farm.name);
        self.voice.say(line::start(STAGING, &staging)).await;
        let Farm { client, store_dir, .. } = &*self.farm;
        let handed = inputs::hand_over(client, store_dir, &self.places, &self.locks, &self.voice, lacking, inputs).await;
        self.voice.say(line::stop(STAGING)).await;
        handed
    }

    /// Submits; if the farm lacks something that it seemed to have, once more with all that the build can need.
    async fn submit(&self, ask: &Ask, inputs: &Inputs) -> anyhow::Result<(BuildId, Held)> {
        let Farm { client, store_dir, .. } = &*self.farm;
        let root = Root { derivation: ask.derivation.clone(), outputs: inputs.outputs.clone() };
        let ms = |seconds: u64| seconds.saturating_mul(1000);
        let patience =
            Patience { attempt_ms_max: self.settings.timeout_seconds.map(ms), silent_ms_max: self.settings.silent_seconds_max.map(ms) };
        let name = || ask.derivation.name().to_owned();
        match submit_held(client, name(), vec![root.clone()], false, patience).await {
            Err(error) if words::exit_code_of(&error) == ExitCode::from(words::BAD_INPUT) => {
                tracing::debug!(%error, "handing over everything");
                inputs::hand_over_all(client, store_dir, &self.places, &root).await?;
                submit_held(client, name(), vec![root], false, patience).await
            }
            submitted => submitted,
        }
    }
}

/// Returns the paths that Nix wants.
fn wanted(ask: &Ask, lacking: &Lacking, inputs: &Inputs) -> anyhow::Result<Vec<StorePath>> {
    let path = |name: &OutputName| {
        let output = lacking.root.outputs.get(name).with_context(|| format!("derivation `{}` has no output `{name}`", ask.derivation))?;
        output.path().cloned().with_context(|| format!("output `{name}` has no path before it is built"))
    };
    inputs.outputs.iter().map(path).collect()
}

/// The number of the activity of handing over inputs.
const STAGING: u64 = 1;
/// As Nix's own hook of old: the build failed, and would again.
const FAILED_FOR_GOOD: u8 = 100;
/// The build took too long.
const TIMED_OUT: u8 = 101;
/// Something else went wrong.
pub(super) const FAILED_OTHERWISE: u8 = 1;
