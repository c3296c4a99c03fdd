//! An input that was there when a job was submitted and is gone when the job is resolved: a collection, or somebody's hands, took it in the
//! moment between. It is built again, once, by a build of the farm's own; the job waits for that.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use kiln_wire::client::{BuildState, RefusalKind, Submission};
use kiln_wire::{BuildId, DrvPath, OutputName, RequestId, Root, Urgency};

use crate::parts::Parts;
use crate::submit;

/// What was done about inputs that vanished, while one job is resolved.
#[derive(Debug, Default)]
pub(crate) struct BroughtBack {
    builds: Vec<(DrvPath, OutputName, BuildId)>,
}

/// What is to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Look again, a moment later.
    Wait,
    /// It will not come back.
    GiveUp,
}

impl BroughtBack {
    /// Has an output built again that is not there, unless that was done.
    pub(crate) async fn bring(&mut self, parts: &Arc<Parts>, input: &DrvPath, output: &OutputName) -> Next {
        if let Some((.., build)) = self.builds.iter().find(|(known, name, _)| known == input && name == output) {
            // One that left the farm has ended.
            return match parts.farm(|farm| farm.build_view(*build).map(|view| view.state)) {
                Some(BuildState::Active) => Next::Wait,
                Some(BuildState::Built | BuildState::Failed | BuildState::Cancelled) | None => Next::GiveUp,
            };
        }
        let submission = Submission {
            request: draw_request(),
            name: format!("{} (again)", input.name()),
            roots: vec![Root { derivation: input.clone(), outputs: [output.clone()].into() }],
            keep_going: false,
            urgency: Urgency::default(),
            trace: None,
            evaluation: None,
        };
        match submit::anew(parts, submission, None).await {
            Ok(build) => {
                tracing::warn!(%input, %output, %build, "an input is gone that was there when its job was submitted: it is built again");
                self.builds.push((input.clone(), output.clone(), build));
                Next::Wait
            }
            Err(refusal) if refusal.kind == RefusalKind::Unavailable => Next::Wait,
            Err(refusal) => {
                tracing::warn!(%input, %output, refusal.message, "an input is gone, and cannot be built again");
                Next::GiveUp
            }
        }
    }
}

/// Draws a number that no other submission has.
pub(crate) fn draw_request() -> RequestId {
    // The standard library's hasher is seeded from the system's randomness.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    RequestId(hasher.finish())
}
