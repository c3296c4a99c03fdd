//! A [`Derivation`] as ATerm: as the file has it, and in the two forms that are hashed.

use std::collections::{BTreeMap, BTreeSet};

use kiln_wire::{OutputName, Sha256Hash, StoreDir};

use super::{Derivation, InputOutputs, Output};
use crate::content::Method;
use crate::hash::Algorithm;

/// Inputs as the hashed forms have them: the modulo hash of each, with the outputs that are needed.
pub(crate) type ModuloInputs = BTreeMap<Sha256Hash, BTreeSet<OutputName>>;

/// Returns the file's bytes.
pub(super) fn print(derivation: &Derivation, store_dir: &StoreDir) -> Vec<u8> {
    let mut out = Printer { bytes: Vec::with_capacity(2048), store_dir };
    out.raw(if derivation.is_dynamic() { "DrvWithVersion(\"xp-dyn-drv\"," } else { "Derive(" });
    out.outputs(derivation, false);
    out.raw(",");
    out.list(&derivation.inputs, |out, (path, input)| {
        out.raw("(");
        out.quoted(&store_dir.join(path.as_path()));
        out.raw(",");
        out.input_outputs(input);
        out.raw(")");
    });
    out.rest(derivation, false);
    out.bytes
}

/// Returns the form whose hash stands for this derivation where it is an input.
pub(crate) fn print_for_input(derivation: &Derivation, store_dir: &StoreDir, inputs: &ModuloInputs) -> Vec<u8> {
    print_modulo(derivation, store_dir, inputs, false)
}

/// Returns the form that its own output paths follow from: outputs blank, also where the environment names them.
pub(crate) fn print_for_outputs(derivation: &Derivation, store_dir: &StoreDir, inputs: &ModuloInputs) -> Vec<u8> {
    print_modulo(derivation, store_dir, inputs, true)
}

fn print_modulo(derivation: &Derivation, store_dir: &StoreDir, inputs: &ModuloInputs, blank: bool) -> Vec<u8> {
    let mut out = Printer { bytes: Vec::with_capacity(2048), store_dir };
    out.raw("Derive(");
    out.outputs(derivation, blank);
    out.raw(",");
    out.list(inputs, |out, (hash, outputs)| {
        out.raw("(");
        out.quoted(&hash.to_string());
        out.raw(",");
        out.list(outputs, |out, output| out.quoted(output.as_str()));
        out.raw(")");
    });
    out.rest(derivation, blank);
    out.bytes
}

struct Printer<'a> {
    bytes: Vec<u8>,
    store_dir: &'a StoreDir,
}

impl Printer<'_> {
    fn raw(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// Nix does not escape paths, hashes, names of outputs and the system.
    fn quoted(&mut self, text: &str) {
        self.raw("\"");
        self.raw(text);
        self.raw("\"");
    }

    fn escaped(&mut self, text: &[u8]) {
        self.raw("\"");
        let mut rest = text;
        // Whole stretches at once: hardly any byte is escaped.
        while let Some((at, escape)) = rest.iter().enumerate().find_map(|(at, byte)| Some((at, escape(*byte)?))) {
            self.bytes.extend_from_slice(&rest[..at]);
            self.raw(escape);
            rest = &rest[at + 1..];
        }
        self.bytes.extend_from_slice(rest);
        self.raw("\"");
    }

    fn list<T>(&mut self, items: impl IntoIterator<Item = T>, mut item: impl FnMut(&mut Self, T)) {
        self.raw("[");
        for (position, value) in items.into_iter().enumerate() {
            if position > 0 {
                self.raw(",");
            }
            item(self, value);
        }
        self.raw("]");
    }

    fn outputs(&mut self, derivation: &Derivation, blank: bool) {
        let store_dir = self.store_dir;
        self.list(&derivation.outputs, |out, (name, output)| {
            let (path, algorithm, hash) = match output {
                Output::InputAddressed(path) => (if blank { String::new() } else { store_dir.join(path) }, String::new(), String::new()),
                Output::Fixed { address, path } => {
                    (store_dir.join(path), method_algorithm(address.method, address.hash.algorithm()), address.hash.to_base16())
                }
                Output::Floating { method, algorithm } => (String::new(), method_algorithm(*method, *algorithm), String::new()),
                Output::Deferred => (String::new(), String::new(), String::new()),
                Output::Impure { method, algorithm } => (String::new(), method_algorithm(*method, *algorithm), "impure".to_owned()),
            };
            out.raw("(");
            for (position, field) in [name.as_str(), &path, &algorithm, &hash].into_iter().enumerate() {
                if position > 0 {
                    out.raw(",");
                }
                out.quoted(field);
            }
            out.raw(")");
        });
    }

    /// Nesting is as deep as the file's was, which the parser bounds.
    fn input_outputs(&mut self, input: &InputOutputs) {
        if input.dynamic.is_empty() {
            self.list(&input.outputs, |out, name| out.quoted(name.as_str()));
            return;
        }
        self.raw("(");
        self.list(&input.outputs, |out, name| out.quoted(name.as_str()));
        self.raw(",");
        self.list(&input.dynamic, |out, (name, node)| {
            out.raw("(");
            out.quoted(name.as_str());
            out.raw(",");
            out.input_outputs(node);
            out.raw(")");
        });
        self.raw(")");
    }

    /// Everything after the inputs, the final parenthesis included.
    fn rest(&mut self, derivation: &Derivation, blank: bool) {
        let store_dir = self.store_dir;
        self.raw(",");
        self.list(&derivation.sources, |out, path| out.quoted(&store_dir.join(path)));
        self.raw(",");
        self.quoted(&derivation.system);
        self.raw(",");
        self.escaped(derivation.builder.as_bytes());
        self.raw(",");
        self.list(&derivation.args, |out, arg| out.escaped(arg.as_bytes()));
        self.raw(",");
        self.list(&derivation.env, |out, (key, value)| {
            let blank = blank && derivation.outputs.keys().any(|output| output.as_str() == key);
            out.raw("(");
            out.escaped(key.as_bytes());
            out.raw(",");
            out.escaped(if blank { b"" } else { value });
            out.raw(")");
        });
        self.raw(")");
    }
}

fn escape(byte: u8) -> Option<&'static str> {
    match byte {
        b'"' => Some("\\\""),
        b'\\' => Some("\\\\"),
        b'\n' => Some("\\n"),
        b'\r' => Some("\\r"),
        b'\t' => Some("\\t"),
        _ => None,
    }
}

fn method_algorithm(method: Method, algorithm: Algorithm) -> String {
    format!("{}{algorithm}", method.prefix())
}
