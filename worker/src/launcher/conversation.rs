//! One conversation: a build, from its task to the removal of what it left.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use kiln_wire::{Failure, FailureClass};
use rustix::fs::{CWD, Gid, Mode, Uid, fchmod, fchown};
use serde_bytes::ByteBuf;

use super::message::{Answer, Ask, Claim, TalkError, read_message, write_message};
use super::places::Owner;
use super::serve::{Host, Taken};
use crate::failure::{caused, chain, failure};
use crate::outputs::make_canonical;
use crate::sandbox::disk::Room;
use crate::sandbox::{self, SandboxError, Spec};
use crate::scratch::Scratch;
use crate::trash::{c_name, open_dir};

/// One build.
pub(super) struct Conversation<'a> {
    host: &'a Host,
    stream: &'a UnixStream,
    // Before the directory that it lies in.
    room: Room,
    // Before the user: that is free only when its files are out of the way.
    scratch: Scratch,
    _user: Taken<'a>,
}

/// Longest wait for a worker to take a piece of log: one that is stopped for a while, from its terminal say, keeps its builds. Their limits
/// are not watched meanwhile.
const SEND_MAX: Duration = Duration::from_secs(600);

impl<'a> Conversation<'a> {
    pub(super) fn hold(host: &'a Host, stream: &'a UnixStream) -> Result<(), TalkError> {
        stream.set_write_timeout(Some(SEND_MAX))?;
        let task = match read_message(stream)? {
            Some(Ask::Run(task)) => task,
            Some(Ask::Stop | Ask::Claim(_)) | None => return Ok(()),
        };
        let refuse = |reason: &dyn std::error::Error| write_message(stream, &Answer::NotRun(chain(reason)));
        if let Err(err) = host.policy.check(&task, host.users) {
            return refuse(&err);
        }
        let Some(user) = host.take(task.slot) else {
            return write_message(stream, &Answer::NotRun(format!("launch build `{}`: build user {} is in use", task.name, task.slot)));
        };
        let scratch = match Scratch::new(&host.builds, &task.name, &host.remains) {
            Ok(scratch) => scratch,
            Err(err) => return refuse(&err),
        };
        let room = match host.disk.room(scratch.dir()) {
            Ok(room) => room,
            Err(err) => return refuse(&err),
        };
        let spec = host.policy.spec(*task, scratch.dir().to_owned(), host.users, &host.network);
        let conversation = Self { host, stream, room, scratch, _user: user };
        match conversation.run(&spec) {
            Ok(ended) => write_message(stream, &Answer::Ended(ended))?,
            Err(err) => return refuse(&err),
        }
        conversation.after(&spec)
    }

    fn run(&self, spec: &Spec) -> Result<sandbox::Ended, SandboxError> {
        let mut gone = false;
        sandbox::run(spec, &self.host.cgroups, &self.room, self.stream, &mut |bytes| {
            if !gone && write_message(self.stream, &Answer::Log(ByteBuf::from(bytes))).is_err() {
                // Readable from now on, at its end: the run is stopped.
                let _ = self.stream.shutdown(std::net::Shutdown::Both);
                gone = true;
            }
        })
    }

    /// Hands over the outputs if the worker wants them, once: afterwards it may change what lies there. Nothing of the build lives any
    /// more.
    fn after(&self, spec: &Spec) -> Result<(), TalkError> {
        let mut claimed = false;
        loop {
            let answer = match read_message(self.stream)? {
                Some(Ask::Claim(_)) if claimed => {
                    Answer::Refused(failure(FailureClass::Infrastructure, "hand over the outputs: they were handed over before"))
                }
                Some(Ask::Claim(claim)) => {
                    claimed = true;
                    match self.claim(spec, &claim) {
                        Ok(dir) => Answer::Claimed(dir),
                        Err(failure) => Answer::Refused(failure),
                    }
                }
                // Came when the run had just ended.
                Some(Ask::Stop) => continue,
                Some(Ask::Run(task)) => Answer::NotRun(format!("launch build `{}`: a conversation is about one build", task.name)),
                None => return Ok(()),
            };
            write_message(self.stream, &answer)?;
        }
    }

    fn claim(&self, spec: &Spec, claim: &Claim) -> Result<String, Failure> {
        let dir = spec.outputs_dir();
        make_canonical(&dir, &claim.outputs, spec.host_id.uids(), self.host.policy.owner, claim.bytes_max)?;
        self.open_to_worker(&dir).map_err(|err| caused(FailureClass::Infrastructure, "hand over the outputs", &err))?;
        let text = dir.into_os_string().into_string();
        text.map_err(|_| failure(FailureClass::Infrastructure, "hand over the outputs: the name of the worker's directory is no text"))
    }

    /// Gives the worker the directory in which the outputs lie, and the way to it.
    fn open_to_worker(&self, outputs: &Path) -> io::Result<()> {
        let owner = self.host.policy.owner;
        if owner == Owner::own() {
            return Ok(());
        }
        let (user, group) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        let way = open_dir(CWD, &c_name(self.scratch.dir())?)?;
        fchown(&way, None, Some(group))?;
        fchmod(&way, Mode::from_raw_mode(0o710))?;
        let outputs = open_dir(CWD, &c_name(outputs)?)?;
        fchown(&outputs, Some(user), Some(group))?;
        Ok(fchmod(&outputs, Mode::from_raw_mode(0o700))?)
    }
}
