//! What the farm learned of durations and sizes: asked for, and taken from elsewhere.

use std::sync::Arc;

use kiln_core::{Command, LEARNING};
use kiln_link::{LinkError, Role, Sender};
use kiln_wire::Measured;
use kiln_wire::client::{Refusal, Response};
use kiln_wire::limits::{DURATIONS_PER_ENTRY_MAX, PACKAGE_NAME_BYTES_MAX};

use crate::driver::propose;
use crate::parts::Parts;
use crate::refuse;

/// Takes what was measured elsewhere, if an administrator says so: it decides what everybody's builds wait for.
pub(crate) async fn import(parts: &Arc<Parts>, peer: &Role, durations: Vec<Measured>) -> Result<Response, Refusal> {
    if !matches!(peer, Role::Admin(_)) {
        return Err(refuse::forbidden(format!("import durations: a certificate of `{peer}` does not allow it; ask an administrator")));
    }
    if durations.len() > DURATIONS_PER_ENTRY_MAX {
        let count = durations.len();
        return Err(refuse::invalid(format!(
            "import durations: {count} at once are over the limit of {DURATIONS_PER_ENTRY_MAX}; send them in parts"
        )));
    }
    if let Some((measured, objection)) = durations.iter().find_map(|measured| Some((measured, measured.objection()?))) {
        let pname: String = measured.pname.chars().take(PACKAGE_NAME_BYTES_MAX).collect();
        return Err(refuse::invalid(format!("import the duration of `{}`: {objection}", pname.escape_debug())));
    }
    let version = parts.consensus.version();
    if version < LEARNING {
        let text =
            format!("import durations: the farm is at version {version}; upgrade its coordinators, it can from version {LEARNING} on");
        return Err(refuse::invalid(text));
    }
    let command = Command::ImportDurations { durations, now: parts.clock.now() };
    propose(parts.clone(), vec![command]).await.map_err(|error| refuse::unavailable("import durations", &error))?;
    Ok(Response::Done)
}

/// Sends what the farm expects of packages.
pub(crate) async fn tell(parts: &Parts, pname: Option<&str>, sender: &mut Sender) -> Result<(), LinkError> {
    let views = parts.farm(|farm| farm.packages(pname));
    for views in views.chunks(PACKAGES_PER_FRAME) {
        sender.send(&Response::Packages(views.to_vec())).await?;
    }
    Ok(())
}

/// Packages in one answer: about 200 KiB.
const PACKAGES_PER_FRAME: usize = 1_024;
