//! Derivations as `nix show-derivation` (Nix 2.8) prints them; those that need outputs of derivations that builds make, of which that one
//! knows nothing, as `nix derivation show` (Nix 2.26) does.

use std::collections::BTreeMap;
use std::fmt::Write;

use kiln_wire::{DrvPath, StoreDir};

use super::{Derivation, InputOutputs, Output};
use crate::content::Method;
use crate::hash::Algorithm;

/// Returns what the older of the two Nix that can read it prints for each of these derivations, byte for byte where every text is UTF-8 (Nix copies other
/// bytes into its JSON, which no reader takes; here they become U+FFFD). Ends without a newline, as Nix's text does.
pub fn show(store_dir: &StoreDir, derivations: &[(DrvPath, Derivation)]) -> String {
    let mut out = Json { text: String::new(), depth: 0, style: Style::AsWritten };
    out.block('{', '}', derivations, |out, (path, derivation)| {
        out.key(&store_dir.join(path.as_path()));
        match derivation.is_dynamic() {
            false => one(out, store_dir, derivation),
            true => one_dynamic(out, store_dir, derivation),
        }
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

/// As Nix 2.26: fields are sorted, and the name is one.
fn one_dynamic(out: &mut Json, store_dir: &StoreDir, derivation: &Derivation) {
    type Part = fn(&mut Json, &StoreDir, &Derivation);
    let fields: [(&str, Part); 8] = [
        ("args", |out, _, derivation| out.block('[', ']', &derivation.args, |out, arg| out.string(arg))),
        ("builder", |out, _, derivation| out.string(&derivation.builder)),
        ("env", |out, _, derivation| {
            out.block('{', '}', &derivation.env, |out, (key, value)| {
                out.key(key);
                out.string(&String::from_utf8_lossy(value));
            });
        }),
        ("inputDrvs", |out, store_dir, derivation| {
            out.block('{', '}', &derivation.inputs, |out, (path, input)| {
                out.key(&store_dir.join(path.as_path()));
                node(out, input);
            });
        }),
        ("inputSrcs", |out, store_dir, derivation| {
            out.block('[', ']', &derivation.sources, |out, path| out.string(&store_dir.join(path)));
        }),
        ("name", |out, _, derivation| out.string(&derivation.name)),
        ("outputs", |out, store_dir, derivation| {
            out.block('{', '}', &derivation.outputs, |out, (name, output)| {
                out.key(name.as_str());
                out.block('{', '}', sorted_output_fields(store_dir, output), |out, (key, value)| {
                    out.key(key);
                    match value {
                        Field::Text(text) => out.string(&text),
                        Field::True => out.text.push_str("true"),
                    }
                });
            });
        }),
        ("system", |out, _, derivation| out.string(&derivation.system)),
    ];
    out.style = Style::Sorted;
    out.block('{', '}', fields, |out, (name, field)| {
        out.key(name);
        field(out, store_dir, derivation);
    });
    out.style = Style::AsWritten;
}

/// Nesting is as deep as the file's was, which the parser bounds.
fn node(out: &mut Json, input: &InputOutputs) {
    out.block('{', '}', [true, false], |out, is_dynamic| {
        if is_dynamic {
            out.key("dynamicOutputs");
            out.block('{', '}', &input.dynamic, |out, (name, inner)| {
                out.key(name.as_str());
                node(out, inner);
            });
        } else {
            out.key("outputs");
            out.block('[', ']', &input.outputs, |out, name| out.string(name.as_str()));
        }
    });
}

/// As Nix 2.26: how the content is read is a field of its own.
fn sorted_output_fields(store_dir: &StoreDir, output: &Output) -> BTreeMap<&'static str, Field> {
    let mut fields: BTreeMap<&'static str, Field> = output_fields(store_dir, output).into_iter().collect();
    let content = match output {
        Output::InputAddressed(_) | Output::Deferred => None,
        Output::Fixed { address, .. } => Some((address.method, address.hash.algorithm())),
        Output::Floating { method, algorithm } | Output::Impure { method, algorithm } => Some((*method, *algorithm)),
    };
    if let Some((method, algorithm)) = content {
        let method = match method {
            Method::Flat => "flat",
            Method::Nar => "nar",
            Method::Text => "text",
            Method::Git => "git",
        };
        fields.insert("method", Field::Text(method.to_owned()));
        fields.insert("hashAlgo", Field::Text(algorithm.to_string()));
    }
    fields
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
    style: Style,
}

/// How text is escaped: by Nix' own writer, or by the one of Nix 2.26, which has two more short forms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    AsWritten,
    Sorted,
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
                '\u{8}' if self.style == Style::Sorted => self.text.push_str("\\b"),
                '\u{c}' if self.style == Style::Sorted => self.text.push_str("\\f"),
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

    /// As Nix 2.26.3 prints this file.
    #[test]
    fn what_needs_derivations_that_builds_make_is_shown_as_a_nix_that_can_read_it_does() {
        let bytes = concat!(
            r#"DrvWithVersion("xp-dyn-drv",[("out","/nix/store/ilghkg8sqnh9275b62zcvsq9kpkym8yl-fixed","sha256","#,
            r#""5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")],"#,
            r#"[("/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-dep2.drv",(["cat","dog"],[("cat",["kitten"]),("goose",([],[("gosling",["out"])]))])),"#,
            "(\"/nix/store/p0nil488m3zfwi2az29lispfwy0krzjd-x.drv\",[\"out\"])],[],\"s\",\"b\",[],[(\"x\",\"\\\"q\\\\ \u{c}\u{8}\u{1}\u{7f}\")])",
        );
        let derivation = Derivation::parse(&StoreDir::default(), "fixed", bytes.as_bytes()).expect("a derivation");
        let path = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-fixed.drv").expect("a path");
        let shown = show(&StoreDir::default(), &[(path, derivation)]);
        let inputs = r#"    "inputDrvs": {
      "/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-dep2.drv": {
        "dynamicOutputs": {
          "cat": {
            "dynamicOutputs": {},
            "outputs": [
              "kitten"
            ]
          },
          "goose": {
            "dynamicOutputs": {
              "gosling": {
                "dynamicOutputs": {},
                "outputs": [
                  "out"
                ]
              }
            },
            "outputs": []
          }
        },
        "outputs": [
          "cat",
          "dog"
        ]
      },
      "/nix/store/p0nil488m3zfwi2az29lispfwy0krzjd-x.drv": {
        "dynamicOutputs": {},
        "outputs": [
          "out"
        ]
      }
    },
    "inputSrcs": [],
    "name": "fixed",
    "outputs": {
      "out": {
        "hash": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "hashAlgo": "sha256",
        "method": "flat",
        "path": "#;
        assert!(shown.contains(inputs), "{shown}");
        assert!(
            shown.contains(
                "    \"args\": [],\n    \"builder\": \"b\",\n    \"env\": {\n      \"x\": \"\\\"q\\\\ \\f\\b\\u0001\u{7f}\"\n    },\n"
            ),
            "{shown}"
        );
    }
}
