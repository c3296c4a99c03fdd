//! How a hook speaks to Nix: notes and answers on standard error, the builder's log on a descriptor of its own.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;

use anyhow::anyhow;
use kiln_nix::hook::line;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::said::ToHook;

/// Speaks for one hook, here or by way of an agent.
#[derive(Clone, Debug)]
pub(super) struct Voice(mpsc::Sender<ToHook>);

impl Voice {
    /// Returns a voice, and what it says.
    pub(super) fn new() -> (Self, mpsc::Receiver<ToHook>) {
        let (voice, said) = mpsc::channel(WORDS_AHEAD);
        (Self(voice), said)
    }

    /// Says something to Nix. If nobody hears it, the hook is gone, and that is noticed elsewhere.
    pub(super) async fn say(&self, text: impl Into<String>) {
        let _gone = self.0.send(ToHook::Say(text.into())).await;
    }

    /// Says something that people should know.
    pub(super) async fn info(&self, text: &str) {
        self.say(line::info(text)).await;
    }

    /// Passes on the builder's log.
    pub(super) async fn log(&self, bytes: Vec<u8>) -> anyhow::Result<()> {
        self.0.send(ToHook::Log(bytes)).await.map_err(|_| anyhow!("write the log: Nix does not read it any more"))
    }

    /// Says something that is no word for Nix.
    pub(super) async fn tell(&self, word: ToHook) {
        let _gone = self.0.send(word).await;
    }
}

/// Where Nix reads the builder's log.
pub(super) struct Log(Option<File>);

impl Log {
    /// Takes the descriptor of the log away from this process and from all that it starts, and keeps another way to it. Of the other end,
    /// which Nix gives to hooks too, it lets go: as long as one has it, none hears that Nix is gone.
    pub(super) fn take() -> Self {
        let leads_to = |descriptor: &str| std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok();
        // Looked at before anything is opened, which may get the number.
        let ends: &[i32] = match leads_to("4").filter(|log| log.to_string_lossy().starts_with("pipe:")) {
            Some(pipe) if leads_to("5") == Some(pipe.clone()) => &[4, 5],
            _ => &[4],
        };
        // By its name, so that nothing is assumed of a descriptor that is not there.
        let Ok(log) = File::options().write(true).open("/proc/self/fd/4") else { return Self(None) };
        for descriptor in ends {
            let closed = nix::unistd::close(*descriptor);
            tracing::debug!(descriptor, ?closed, "no child has the log");
        }
        Self(Some(log))
    }

    /// Writes, and waits for who reads.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Some(log) => log.write_all(bytes),
            // Nix does not run this.
            None => io::stderr().write_all(bytes),
        }
    }
}

/// Says to Nix what a voice says, until that ends or Nix hears no more.
pub(super) async fn aloud(mut said: mpsc::Receiver<ToHook>, log: Log) -> io::Result<()> {
    let is_pipe = log.0.as_ref().is_some_and(|log| log.metadata().is_ok_and(|meta| meta.file_type().is_fifo()));
    let (mut pipe, mut log) = match log.0 {
        // Written without blocking: what is heard meanwhile of the farm's end and of Nix' counts.
        Some(file) if is_pipe => (Some(pipe::Sender::from_file(file)?), Log(None)),
        other => (None, Log(other)),
    };
    while let Some(word) = said.recv().await {
        match (word, &mut pipe) {
            (ToHook::Say(text), _) => say(&text),
            (ToHook::Log(bytes), Some(pipe)) => pipe.write_all(&bytes).await?,
            (ToHook::Log(bytes), None) => log.write(&bytes)?,
            (ToHook::Welcome { .. } | ToHook::Answered(_) | ToHook::Ended(_) | ToHook::Alive, _) => {}
        }
    }
    Ok(())
}

/// Says something to Nix. If Nix is gone, so is this process soon.
pub(super) fn say(text: &str) {
    let mut to = io::stderr().lock();
    let _gone = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

/// Returns a line for people. What a farm or a derivation says in it cannot be taken for an answer to Nix, nor move a terminal's cursor.
pub(super) fn note(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).chain(['\n']).collect()
}

/// Words that may wait to be heard.
const WORDS_AHEAD: usize = 64;
