//! Realisations: which store path a derived output became, signed. In both layouts that Nix has had.
//!
//! Nix to 2.34 names the output by a hash of the derivation (`realisations/sha256:<hash>!<output>.doi`), later ones by the derivation's
//! path (`build-trace-v2/<derivation>/<output>.doi`). Source: Nix's `realisation.cc`. Reads and writes no files.

use std::collections::BTreeMap;
use std::fmt;

use kiln_wire::{DrvPath, OutputName, Sha256Hash, StorePath};
use serde_json::{Value, json};

use crate::hash::parse_sha256;
use crate::keyring::Keyring;
use crate::sign::{PublicKey, Signature};

/// A derived output, by either name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DerivedOutput {
    /// As Nix to 2.34 has it.
    ByHash {
        /// What [`crate::modulo::Computed::identity`] says.
        identity: Sha256Hash,
        /// Which output.
        output: OutputName,
    },
    /// As later ones have it.
    ByPath {
        /// The derivation.
        derivation: DrvPath,
        /// Which output.
        output: OutputName,
    },
}

/// What a derived output became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realisation {
    /// Which output.
    pub of: DerivedOutput,
    /// Where it is.
    pub path: StorePath,
    /// Who says so.
    pub signatures: Vec<Signature>,
}

/// Text that is no realisation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read the realisation of `{of}`: {rule}")]
pub struct RealisationError {
    /// What it was to be of.
    pub of: String,
    /// The rule that it breaks.
    pub rule: String,
}

impl DerivedOutput {
    /// Reads `sha256:<hash>!<output>`, hexadecimal.
    ///
    /// # Errors
    /// [`RealisationError`] names the rule that the text breaks.
    pub fn parse_by_hash(text: &str) -> Result<Self, RealisationError> {
        let refuse = |rule: &str| RealisationError { of: text.chars().take(300).collect(), rule: rule.to_owned() };
        let (hash, output) = text.split_once('!').ok_or_else(|| refuse("want `sha256:HASH!OUTPUT`"))?;
        let hex = hash.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let hex = hex.filter(|hex| !hex.bytes().any(|byte| byte.is_ascii_uppercase()));
        let identity = hex.and_then(|_| parse_sha256(hash).ok()).ok_or_else(|| refuse("the hash is no SHA-256 in base 16"))?;
        let output = OutputName::parse(output).map_err(|err| refuse(&err.to_string()))?;
        Ok(Self::ByHash { identity, output })
    }

    /// Returns the file of its realisation in a binary cache.
    pub fn file_name(&self) -> String {
        match self {
            Self::ByHash { .. } => format!("realisations/{self}.doi"),
            Self::ByPath { derivation, output } => format!("build-trace-v2/{derivation}/{output}.doi"),
        }
    }
}

impl fmt::Display for DerivedOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByHash { identity, output } => write!(f, "sha256:{identity}!{output}"),
            Self::ByPath { derivation, output } => write!(f, "{derivation}^{output}"),
        }
    }
}

impl Realisation {
    /// Makes a realisation that every key of a ring that signs vouches for.
    pub fn signed(of: DerivedOutput, path: StorePath, keys: &Keyring) -> Self {
        let unsigned = Self { of, path, signatures: Vec::new() };
        let signatures = keys.sign(unsigned.fingerprint().as_bytes());
        Self { signatures, ..unsigned }
    }

    /// Says whether a key of the ring vouches for it.
    pub fn is_vouched(&self, keys: &Keyring) -> bool {
        keys.vouches(self.fingerprint().as_bytes(), &self.signatures)
    }

    /// Returns what is signed: compact JSON, keys in order.
    pub fn fingerprint(&self) -> String {
        match &self.of {
            DerivedOutput::ByHash { .. } => self.by_hash().to_string(),
            DerivedOutput::ByPath { derivation, output } => {
                let key = json!({"drvPath": derivation.as_str(), "outputName": output.as_str()});
                json!({"key": key, "value": {"outPath": self.path.as_str()}}).to_string()
            }
        }
    }

    /// Returns the text of its file, and of what daemons say of it.
    pub fn to_json(&self) -> String {
        let (mut value, signatures): (Value, Vec<Value>) = match &self.of {
            DerivedOutput::ByHash { .. } => (self.by_hash(), self.signatures.iter().map(|by| json!(by.to_string())).collect()),
            DerivedOutput::ByPath { .. } => {
                let signed = |by: &Signature| json!({"keyName": by.key_name(), "sig": by.to_base64()});
                (json!({"outPath": self.path.as_str()}), self.signatures.iter().map(signed).collect())
            }
        };
        value["signatures"] = Value::Array(signatures);
        value.to_string()
    }

    fn by_hash(&self) -> Value {
        json!({"dependentRealisations": {}, "id": self.of.to_string(), "outPath": self.path.as_str()})
    }

    /// Reads the text of a file that must be of `of`.
    ///
    /// # Errors
    /// [`RealisationError`] names the rule that the text breaks.
    pub fn parse(of: DerivedOutput, text: &[u8]) -> Result<Self, RealisationError> {
        let refuse = |rule: String| RealisationError { of: of.to_string(), rule };
        let value: Value = serde_json::from_slice(text).map_err(|err| refuse(err.to_string()))?;
        let path = value["outPath"].as_str().ok_or_else(|| refuse("it has no `outPath`".into()))?;
        let path = StorePath::parse(path).map_err(|err| refuse(err.to_string()))?;
        if matches!(of, DerivedOutput::ByHash { .. }) && value["id"].as_str() != Some(&of.to_string()) {
            return Err(refuse("its `id` is of another output".into()));
        }
        let text_of = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            value => Some(format!("{}:{}", value["keyName"].as_str()?, value["sig"].as_str()?)),
        };
        let listed = value["signatures"].as_array().map(Vec::as_slice).unwrap_or_default();
        let read = |value: &Value| text_of(value).and_then(|text| Signature::parse(&text).ok());
        let signatures = listed.iter().map(|value| read(value).ok_or_else(|| refuse("a signature cannot be read".into())));
        let signatures = signatures.collect::<Result<_, _>>()?;
        Ok(Self { of, path, signatures })
    }
}

/// A realisation in the words of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What they say.
    pub realisation: Realisation,
    /// What they signed. Nix to 2.34 names there, in `dependentRealisations`, what the output refers to.
    signed: String,
}

impl Told {
    /// Reads text that is about `of`.
    ///
    /// # Errors
    /// [`RealisationError`] names the rule that the text breaks.
    pub fn parse(of: DerivedOutput, text: &[u8]) -> Result<Self, RealisationError> {
        let realisation = Realisation::parse(of, text)?;
        let signed = match &realisation.of {
            DerivedOutput::ByPath { .. } => realisation.fingerprint(),
            DerivedOutput::ByHash { .. } => {
                let refuse = |err: serde_json::Error| RealisationError { of: realisation.of.to_string(), rule: err.to_string() };
                let mut value: BTreeMap<String, Value> = serde_json::from_slice(text).map_err(refuse)?;
                value.remove("signatures");
                serde_json::to_string(&value).map_err(refuse)?
            }
        };
        Ok(Self { realisation, signed })
    }

    /// Reads text that says itself what it is about, as Nix to 2.34 writes it.
    ///
    /// # Errors
    /// [`RealisationError`] names the rule that the text breaks.
    pub fn parse_named(text: &[u8]) -> Result<Self, RealisationError> {
        let refuse = |rule: String| RealisationError { of: "an output".to_owned(), rule };
        let value: Value = serde_json::from_slice(text).map_err(|err| refuse(err.to_string()))?;
        let id = value["id"].as_str().ok_or_else(|| refuse("it has no `id`".into()))?;
        Self::parse(DerivedOutput::parse_by_hash(id)?, text)
    }

    /// Says whether one of `keys` signed it. [`SIGNATURES_MAX`] of its signatures are looked at.
    pub fn is_signed_by(&self, keys: &[PublicKey]) -> bool {
        let signatures = self.realisation.signatures.iter().take(SIGNATURES_MAX);
        signatures.into_iter().any(|signature| keys.iter().any(|key| key.verifies(self.signed.as_bytes(), signature)))
    }
}

/// Signatures of one realisation that are looked at.
pub const SIGNATURES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::SecretKey;

    fn keys(seed: u8) -> Keyring {
        Keyring::of(SecretKey::from_seed("farm-1", [seed; 32]).expect("a name"))
    }

    fn both() -> [DerivedOutput; 2] {
        let output = OutputName::parse("dev").expect("a name");
        let derivation = DrvPath::parse(&format!("{}-a.drv", "d".repeat(32))).expect("a path");
        [DerivedOutput::ByHash { identity: Sha256Hash([0xab; 32]), output: output.clone() }, DerivedOutput::ByPath { derivation, output }]
    }

    fn made() -> StorePath {
        StorePath::parse(&format!("{}-a-dev", "m".repeat(32))).expect("a path")
    }

    #[test]
    fn both_layouts_are_as_nix_writes_and_signs_them() {
        let [by_hash, by_path] = both().map(|of| Realisation { of, path: made(), signatures: Vec::new() });
        let (hash, m, d) = ("ab".repeat(32), "m".repeat(32), "d".repeat(32));
        let old = format!(r#"{{"dependentRealisations":{{}},"id":"sha256:{hash}!dev","outPath":"{m}-a-dev"}}"#);
        assert_eq!(by_hash.fingerprint(), old);
        assert_eq!(by_hash.of.file_name(), format!("realisations/sha256:{hash}!dev.doi"));
        assert_eq!(by_hash.to_json(), format!("{},\"signatures\":[]}}", &old[..old.len() - 1]));
        let key = format!(r#"{{"drvPath":"{d}-a.drv","outputName":"dev"}}"#);
        assert_eq!(by_path.fingerprint(), format!(r#"{{"key":{key},"value":{{"outPath":"{m}-a-dev"}}}}"#));
        assert_eq!(by_path.of.file_name(), format!("build-trace-v2/{d}-a.drv/dev.doi"));
        assert_eq!(by_path.to_json(), format!(r#"{{"outPath":"{m}-a-dev","signatures":[]}}"#));
    }

    #[test]
    fn what_is_signed_reads_back_and_what_is_changed_is_not_vouched_for() {
        for of in both() {
            let signed = Realisation::signed(of.clone(), made(), &keys(1));
            let read = Realisation::parse(of.clone(), signed.to_json().as_bytes()).expect("reads");
            assert_eq!(read, signed);
            let named = Told::parse_named(signed.to_json().as_bytes());
            assert_eq!(named.is_ok_and(|named| named.realisation == signed), matches!(of, DerivedOutput::ByHash { .. }));
            assert!(read.is_vouched(&keys(1)) && !read.is_vouched(&keys(2)));
            let other = StorePath::parse(&format!("{}-a-dev", "n".repeat(32))).expect("a path");
            assert!(!Realisation { path: other, ..read.clone() }.is_vouched(&keys(1)), "of another path");
            let elsewhere = both().into_iter().find(|other| *other != of).expect("two");
            assert!(!Realisation { of: elsewhere, ..read }.is_vouched(&keys(1)), "in another layout");
        }
    }

    #[test]
    fn what_others_signed_counts_whole_and_as_they_said_it() {
        let key = |name: &str, seed| SecretKey::from_seed(name, [seed; 32]).expect("a name");
        let trusted = [key("ci-1", 1).public()];
        for of in both() {
            let signed = |seed| Realisation::signed(of.clone(), made(), &Keyring::of(key("ci-1", seed)));
            let is_signed = |told: &Realisation| Told::parse(of.clone(), told.to_json().as_bytes()).expect("reads").is_signed_by(&trusted);
            let other = StorePath::parse(&format!("{}-a-dev", "n".repeat(32))).expect("a path");
            assert!(is_signed(&signed(1)));
            assert!(!is_signed(&signed(2)), "by another key of that name");
            assert!(!is_signed(&Realisation { path: other, ..signed(1) }), "of another path");
            assert!(!is_signed(&Realisation { signatures: Vec::new(), ..signed(1) }), "by nobody");
        }
        // As Nix to 2.34 says it of an output that refers to another.
        let [of, _] = both();
        let said = format!(
            r#"{{"dependentRealisations":{{"sha256:{0}!out":"{1}-b"}},"id":"{of}","outPath":"{2}"}}"#,
            "cd".repeat(32),
            "b".repeat(32),
            made()
        );
        let by = key("ci-1", 1).sign(said.as_bytes()).to_string();
        let told = |said: &str| format!(r#"{},"signatures":["{by}"]}}"#, &said[..said.len() - 1]);
        assert!(Told::parse_named(told(&said).as_bytes()).expect("reads").is_signed_by(&trusted));
        assert!(
            !Told::parse_named(told(&said.replace("cd", "ce")).as_bytes()).expect("reads").is_signed_by(&trusted),
            "of what it refers to"
        );
    }

    #[test]
    fn text_that_is_no_realisation_is_refused() {
        let [by_hash, by_path] = both();
        let path = format!("{}-a-dev", "m".repeat(32));
        let table = [
            (&by_path, "".to_owned(), "EOF"),
            (&by_path, "{}".to_owned(), "no `outPath`"),
            (&by_path, r#"{"outPath":"../x"}"#.to_owned(), "read store path"),
            (&by_path, format!(r#"{{"outPath":"{path}","signatures":["x"]}}"#), "a signature cannot be read"),
            (&by_hash, format!(r#"{{"outPath":"{path}","id":"sha256:00!dev"}}"#), "of another output"),
        ];
        for (of, text, rule) in table {
            let refused = Realisation::parse(of.clone(), text.as_bytes()).expect_err("no realisation").to_string();
            assert!(refused.contains(rule), "{refused}");
        }
    }

    #[test]
    fn an_identity_reads_back_and_nothing_else_is_one() {
        let [by_hash, _] = both();
        assert_eq!(DerivedOutput::parse_by_hash(&by_hash.to_string()), Ok(by_hash));
        let hash = "AB".repeat(32);
        for text in ["", "sha256:00!out", "sha256:!out", &format!("sha256:{hash}!out"), &format!("sha256:{}!../x", "ab".repeat(32))] {
            assert!(DerivedOutput::parse_by_hash(text).is_err(), "{text}");
        }
    }
}
