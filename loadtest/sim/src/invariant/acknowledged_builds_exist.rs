//! Of clients: what was acknowledged is never lost, and the same request is the same build whenever it is made again.

use std::collections::BTreeMap;

use kiln_core::Command;
use kiln_wire::{BuildId, RequestId};

use crate::event::Reply;

use super::{Invariant, Look};
use crate::fact::Fact;

#[derive(Default)]
pub(super) struct AcknowledgedBuildsExist(BTreeMap<BuildId, RequestId>, BTreeMap<RequestId, BuildId>);

impl Invariant for AcknowledgedBuildsExist {
    fn name(&self) -> &'static str {
        "an acknowledged submission is a committed build, the same for ever"
    }

    fn see(&mut self, fact: &Fact<'_>, _look: &Look<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { entry, command: Command::Submit { request, .. }, .. } => {
                self.0.insert(BuildId(entry.index), *request);
                Ok(())
            }
            Fact::Answered { client, reply: Reply::Submitted(build) } => {
                let told = self.1.entry(client.submission.request).or_insert(*build);
                if told != build {
                    return Err(format!("submission {} is build {told} and build {build}", client.submission.request));
                }
                match self.0.get(build) {
                    Some(request) if *request == client.submission.request => Ok(()),
                    Some(request) => Err(format!("submission {} is told of build {build}, which is {request}", client.submission.request)),
                    None => Err(format!("submission {} is told of build {build}, which is not committed", client.submission.request)),
                }
            }
            Fact::Answered { client, reply: Reply::NoBuild } => {
                Err(format!("the build of submission {} is gone", client.submission.request))
            }
            _ => Ok(()),
        }
    }
}
