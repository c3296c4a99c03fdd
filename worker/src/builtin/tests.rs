//! Which recipe is which builder's, and which is nobody's.

use std::collections::{BTreeMap, BTreeSet};

use kiln_nix::derivation::Output;
use kiln_wire::{OutputName, StorePath};

use super::*;

#[test]
fn a_builder_is_found_by_its_name_or_refused_with_those_there_are() {
    let brings = "this worker brings `builtin:buildenv`, `builtin:fetchurl` and `builtin:unpack-channel`";
    let env = "derivations= manifest=/m";
    let table = [
        ("builtin:buildenv", "out", env, "Buildenv".to_owned()),
        ("builtin:unpack-channel", "out", "src=/s channelName=c", "UnpackChannel".into()),
        ("builtin:buildenv", "dev", env, "builtin:buildenv: the derivation has no output `out`".into()),
        ("builtin:buildenv", "out", "derivations=", "builtin:buildenv: attribute `manifest` missing".into()),
        ("builtin:unpack-channel", "out", "src=/s", "builtin:unpack-channel: attribute `channelName` missing".into()),
        ("builtin:fetchurl", "out", env, "builtin:fetchurl: the derivation must have exactly one output, `out`, of known hash".into()),
        ("builtin:mirror", "out", env, format!("there is no builder `builtin:mirror`; {brings}")),
        ("builtin:Buildenv", "out", env, format!("there is no builder `builtin:Buildenv`; {brings}")),
    ];
    for (builder, output, env, expect) in table {
        let path = StorePath::parse(&format!("{}-x", "0".repeat(32))).expect("a store path");
        let env = env.split(' ').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.into(), value.as_bytes().to_vec()));
        let derivation = Derivation {
            name: "x".into(),
            outputs: [(OutputName::parse(output).expect("a name"), Output::InputAddressed(path))].into(),
            inputs: BTreeMap::new(),
            sources: BTreeSet::new(),
            system: "builtin".into(),
            builder: builder.into(),
            args: Vec::new(),
            env: env.collect(),
        };
        let found = match Builtin::of(&derivation, &derivation.env) {
            Ok(Builtin::Buildenv(_)) => "Buildenv".into(),
            Ok(Builtin::Fetchurl(_)) => "Fetchurl".into(),
            Ok(Builtin::UnpackChannel(_)) => "UnpackChannel".into(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expect, "{builder} {output}");
    }
}
