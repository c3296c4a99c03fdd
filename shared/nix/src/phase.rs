//! Phases of a build, as its log tells them. Pure.

/// Returns the phase that a line of a log begins, as the standard environment of package sets says it, in either of its ways.
pub fn begun(line: &[u8]) -> Option<String> {
    let named = line.strip_prefix(b"Running phase: ").or_else(|| {
        let told = line.strip_prefix(b"@nix ").filter(|told| told.windows(8).any(|window| window == b"setPhase"))?;
        let at = told.windows(9).position(|window| window == b"\"phase\":\"")? + 9;
        told[at..].split(|byte| *byte == b'"').next()
    })?;
    let name: String = String::from_utf8_lossy(named).trim().chars().take(NAME_CHARS_MAX).collect();
    (!name.is_empty()).then_some(name)
}

/// A longer name is no name.
const NAME_CHARS_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_known_by_either_of_its_lines() {
        for (line, phase) in [
            ("Running phase: unpackPhase", Some("unpackPhase")),
            ("Running phase: unpackPhase\r", Some("unpackPhase")),
            (r#"@nix {"action":"setPhase","phase":"buildPhase"}"#, Some("buildPhase")),
            ("@nix { \"action\": \"setPhase\", \"phase\":\"x\" }", Some("x")),
            (r#"@nix {"action":"start","phase":"x"}"#, None),
            ("Running phase: ", None),
            ("not Running phase: y", None),
            ("", None),
        ] {
            assert_eq!(begun(line.as_bytes()).as_deref(), phase, "{line}");
        }
        assert_eq!(begun(format!("Running phase: {}", "x".repeat(999)).as_bytes()).map(|name| name.len()), Some(NAME_CHARS_MAX));
    }
}
