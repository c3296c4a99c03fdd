//! What Nix says on standard input, piece by piece.

use std::io::BufRead;

use anyhow::{Context, bail};
use kiln_nix::daemon::{Assembler, Item};
use kiln_nix::hook::{self, Ask, Inputs, Settings};

/// Reads what Nix says. Blocks.
pub(super) struct Asked<R> {
    from: R,
}

impl<R: BufRead> Asked<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from }
    }

    /// Reads the settings that come first.
    pub(super) fn settings(&mut self) -> anyhow::Result<Settings> {
        let mut settings = Settings::default();
        while self.gather(hook::MORE)?.context("read the settings of Nix: they end early")? != [0; 8] {
            let bytes = self.gather(hook::SETTING)?.context("read a setting of Nix: it ends early")?;
            let (name, value) = hook::setting(&bytes)?;
            settings.set(&name, &value);
        }
        Ok(settings)
    }

    /// Reads the next question; none if Nix has no further one.
    pub(super) fn question(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(verb) = self.gather(hook::VERB)? else { return Ok(None) };
        match hook::verb(&verb)?.as_str() {
            hook::TRY => Ok(Some(self.gather(Ask::ITEMS)?.context("read a question of Nix: it ends early")?)),
            // What later versions may say, this one cannot do.
            other => bail!("Nix says `{other}` where `{}` is due", hook::TRY),
        }
    }

    /// Reads what follows once a build is taken.
    pub(super) fn inputs(&mut self) -> anyhow::Result<Vec<u8>> {
        self.gather(Inputs::ITEMS)?.context("read the inputs of a build: they end early")
    }

    /// Reads items; none if nothing comes any more.
    fn gather(&mut self, items: &'static [Item]) -> anyhow::Result<Option<Vec<u8>>> {
        let mut assembler = Assembler::new(items);
        while !assembler.is_complete() {
            let bytes = self.from.fill_buf().context("hear Nix")?;
            if bytes.is_empty() {
                return if assembler.is_empty() { Ok(None) } else { bail!("hear Nix: it ends in the middle") };
            }
            let taken = assembler.take(bytes)?;
            self.from.consume(taken);
        }
        Ok(Some(assembler.into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use kiln_nix::daemon::Encoder;
    use kiln_wire::StoreDir;

    use super::*;

    fn said() -> Vec<u8> {
        let mut said = Encoder::default();
        said.number(1).text("max-jobs").text("0").number(1).text("timeout").text("60").number(0);
        said.text("try").number(1).text("x86_64-linux").text("/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv");
        said.list(["kvm"], |to, feature| to.text(feature));
        said.list(["/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-in"], |to, path| to.text(path)).list(["out"], |to, name| to.text(name));
        said.into_bytes()
    }

    #[test]
    fn nix_is_heard_to_the_end_in_whatever_pieces_it_speaks() {
        let store_dir = StoreDir::default();
        for size in [1, 7, 8, 4096] {
            let bytes = said();
            let mut asked = Asked::new(std::io::BufReader::with_capacity(size, &bytes[..]));
            let settings = asked.settings().expect("settings");
            assert_eq!((settings.jobs_max, settings.timeout_seconds), (0, Some(60)));
            let ask = Ask::decode(&store_dir, &asked.question().expect("heard").expect("a question")).expect("a question");
            assert_eq!((ask.could_begin, ask.system.as_str(), ask.derivation.name()), (true, "x86_64-linux", "bar"));
            let inputs = Inputs::decode(&store_dir, &asked.inputs().expect("inputs")).expect("inputs");
            assert_eq!((inputs.paths.len(), inputs.outputs.len()), (1, 1));
            assert!(asked.question().expect("heard").is_none(), "it has no further one");
        }
    }

    #[test]
    fn a_nix_that_breaks_off_or_speaks_otherwise_is_refused() {
        let bytes = said();
        let ends_of_items: Vec<usize> = (0..bytes.len()).filter(|length| length % 8 == 0).collect();
        let mut whole = 0;
        for length in ends_of_items {
            let mut asked = Asked::new(&bytes[..length]);
            let heard = asked.settings().and_then(|_| asked.question()).and_then(|_| asked.inputs());
            whole += usize::from(heard.is_ok());
        }
        assert_eq!(whole, 0);
        let mut other = Encoder::default();
        other.number(0).text("help");
        let other = other.into_bytes();
        let mut asked = Asked::new(&other[..]);
        asked.settings().expect("no settings");
        assert!(asked.question().expect_err("refused").to_string().contains("help"));
        let huge = [1_u64, u64::MAX].map(u64::to_le_bytes).concat();
        assert!(Asked::new(&huge[..]).settings().is_err(), "a length that is only claimed");
    }
}
