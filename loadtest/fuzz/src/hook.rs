//! What a Nix says to its build hook: settings, questions and inputs are read the same in whatever pieces they come, and whatever was said,
//! what the hook says back is lines of its own.
//!
//! An input is a byte that says how large the pieces are, then what Nix writes.

use kiln_nix::daemon::{Assembler, Item};
use kiln_nix::hook::{self, Ask, Inputs, Reply, Settings, line};
use kiln_wire::StoreDir;

use crate::{Target, Verdict};

/// As for a daemon's requests: a list of paths is read into a set.
pub(crate) const TARGET: Target = Target { name: "hook", run, heap_bytes: 1 << 20, heap_per_byte: 64 };

fn run(bytes: &[u8]) -> Verdict {
    let [size, said @ ..] = bytes else { return Verdict::Refused };
    let heard = Heard::of(said, said.len() + 1);
    assert_eq!(heard, Heard::of(said, usize::from(*size) + 1), "pieces say the same as the whole");
    heard.check();
    if heard.refused.is_none() { Verdict::Accepted } else { Verdict::Refused }
}

/// All that was understood of a conversation.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    settings: Settings,
    questions: Vec<Ask>,
    inputs: Option<Inputs>,
    /// Why no more was.
    refused: Option<String>,
}

impl Heard {
    fn of(said: &[u8], size: usize) -> Self {
        let mut heard = Self::default();
        heard.refused = heard.hear(&mut Said { left: said, size }).err();
        heard
    }

    /// Listens in the order in which a hook does. It takes the first build that Nix could not begin
    /// itself, or that wants a feature.
    fn hear(&mut self, said: &mut Said<'_>) -> Result<(), String> {
        while said.gather(hook::MORE)?.ok_or("settings end early")? != [0; 8] {
            let bytes = said.gather(hook::SETTING)?.ok_or("a setting ends early")?;
            let (name, value) = hook::setting(&bytes).map_err(|err| err.to_string())?;
            self.settings.set(&name, &value);
        }
        let store_dir = StoreDir::default();
        while let Some(verb) = said.gather(hook::VERB)? {
            if hook::verb(&verb).map_err(|err| err.to_string())? != hook::TRY {
                return Err("another verb".to_owned());
            }
            let bytes = said.gather(Ask::ITEMS)?.ok_or("a question ends early")?;
            let question = Ask::decode(&store_dir, &bytes).map_err(|err| err.to_string())?;
            let is_taken = !question.could_begin || !question.features.is_empty();
            self.questions.push(question);
            if is_taken {
                let bytes = said.gather(Inputs::ITEMS)?.ok_or("inputs end early")?;
                self.inputs = Some(Inputs::decode(&store_dir, &bytes).map_err(|err| err.to_string())?);
                return Ok(());
            }
        }
        Ok(())
    }

    fn check(&self) {
        let _dir = self.settings.objects_dir(&StoreDir::default());
        for question in &self.questions {
            let could_build = self.settings.could_build(&question.system, &question.features);
            assert!(!could_build || self.settings.jobs_max > 0, "who builds nothing could not build it");
            let accepted = Reply::Accept(&question.system).to_text();
            assert!(accepted.starts_with("# accept\n") && accepted.ends_with('\n') && accepted.matches('\n').count() == 2, "{accepted:?}");
        }
        let text = self.refused.as_deref().unwrap_or(&self.settings.store);
        for note in [line::start(7, text), line::error(text), line::info(text)] {
            assert!(note.starts_with("@nix {") && note.ends_with("}\n") && note.matches('\n').count() == 1, "{note:?}");
        }
    }
}

/// What is left of what Nix says, and how much of it comes at a time.
struct Said<'a> {
    left: &'a [u8],
    size: usize,
}

impl Said<'_> {
    /// Gathers items; none if nothing comes any more.
    fn gather(&mut self, items: &'static [Item]) -> Result<Option<Vec<u8>>, String> {
        let mut assembler = Assembler::new(items);
        while !assembler.is_complete() {
            let piece = &self.left[..self.left.len().min(self.size)];
            if piece.is_empty() {
                return if assembler.is_empty() { Ok(None) } else { Err("it ends in the middle".to_owned()) };
            }
            let taken = assembler.take(piece).map_err(|err| err.to_string())?;
            self.left = &self.left[taken..];
        }
        Ok(Some(assembler.into_bytes()))
    }
}
