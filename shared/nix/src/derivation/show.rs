//! Derivations as `nix show-derivation` (Nix 2.8) prints them.

use std::fmt::Write;

use kiln_wire::{DrvPath, StoreDir};

use super::{Derivation, Output};
use crate::content::Method;
use crate::hash::Algorithm;

/// Returns what `nix show-derivation` prints for these derivations, byte for byte where every text is UTF-8 (Nix copies other
/// bytes into its JSON, which no reader takes; here they become U+FFFD). Ends without a newline, as Nix's text does.
pub fn show(store_dir: &StoreDir, derivations: &[(DrvPath, Derivation)]) -> String {
    let mut out = Json { text: String::new(), depth: 0 };
    out.block('{', '}', derivations, |out, (path, derivation)| {
        out.key(&store_dir.join(path.as_path()));
        one(out, store_dir, derivation);
    });
    out.text
}

fn one(out: &mut Json, store_dir: &StoreDir, derivation: &Derivation) {
    type Part = fn(&mut Json, &StoreDir, &Derivation);
    let fields: [(&str, Part); 7] = [
        ("outputs", |out, store_dir, derivation| {
            out.block('{', '}', &derivation.outputs, |out, (name, output)| {
                out.key(name.as_str());
                out.block('{', '}', output_fields(store_dir, output), |out, (key, value)| {
                    out.key(key);
                    match value {
                        Field::Text(text) => out.string(&text),
                        Field::True => out.text.push_str("true"),
                    }
                });
            });
        }),
        ("inputSrcs", |out, store_dir, derivation| {
            out.block('[', ']', &derivation.sources, |out, path| out.string(&store_dir.join(path)));
        }),
        ("inputDrvs", |out, store_dir, derivation| {
            out.block('{', '}', &derivation.inputs, |out, (path, input)| {
                out.key(&store_dir.join(path.as_path()));
                out.block('[', ']', &input.outputs, |out, name| out.string(name.as_str()));
            });
        }),
        ("system", |out, _, derivation| out.string(&derivation.system)),
        ("builder", |out, _, derivation| out.string(&derivation.builder)),
        ("args", |out, _, derivation| out.block('[', ']', &derivation.args, |out, arg| out.string(arg))),
        ("env", |out, _, derivation| {
            out.block('{', '}', &derivation.env, |out, (key, value)| {
                out.key(key);
                out.string(&String::from_utf8_lossy(value));
            });
        }),
    ];
    out.block('{', '}', fields, |out, (name, field)| {
        out.key(name);
        field(out, store_dir, derivation);
    });
}

/// The value of a field of an output.
enum Field {
    Text(String),
    True,
}

fn output_fields(store_dir: &StoreDir, output: &Output) -> Vec<(&'static str, Field)> {
    let path = |path| ("path", Field::Text(store_dir.join(path)));
    let algorithm = |method: Method, algorithm: Algorithm| ("hashAlgo", Field::Text(format!("{}{algorithm}", method.prefix())));
    match output {
        Output::InputAddressed(at) => vec![path(at)],
        Output::Fixed { address, path: at } => {
            vec![path(at), algorithm(address.method, address.hash.algorithm()), ("hash", Field::Text(address.hash.to_base16()))]
        }
        Output::Floating { method, algorithm: name } => vec![algorithm(*method, *name)],
        Output::Deferred => Vec::new(),
        Output::Impure { method, algorithm: name } => vec![algorithm(*method, *name), ("impure", Field::True)],
    }
}

/// Writes JSON with Nix's indentation and escapes.
struct Json {
    text: String,
    depth: usize,
}

impl Json {
    fn block<T>(&mut self, open: char, close: char, items: impl IntoIterator<Item = T>, mut item: impl FnMut(&mut Self, T)) {
        self.text.push(open);
        self.depth += 1;
        let mut empty = true;
        for value in items {
            self.text.push_str(if empty { "\n" } else { ",\n" });
            empty = false;
            self.indent();
            item(self, value);
        }
        self.depth -= 1;
        if !empty {
            self.text.push('\n');
            self.indent();
        }
        self.text.push(close);
    }

    fn indent(&mut self) {
        self.text.extend(std::iter::repeat_n("  ", self.depth));
    }

    fn key(&mut self, key: &str) {
        self.string(key);
        self.text.push_str(": ");
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' | '\\' => self.text.extend(['\\', character]),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                control if control < ' ' => write!(self.text, "\\u{:04x}", u32::from(control)).expect("a String takes any text"),
                other => self.text.push(other),
            }
        }
        self.text.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impure_output_says_so_as_nix_does() {
        let bytes = br#"Derive([("out","","r:sha256","impure")],[],[],"s","b",[],[])"#;
        let derivation = Derivation::parse(&StoreDir::default(), "x", bytes).expect("a derivation");
        let path = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-x.drv").expect("a path");
        let shown = show(&StoreDir::default(), &[(path, derivation)]);
        assert!(shown.contains("\"hashAlgo\": \"r:sha256\",\n        \"impure\": true\n"), "{shown}");
    }
}
