//! Lines of standard error that Nix takes for notes of its own: `@nix` and a JSON object.

use serde_json::{Value, json};

/// Says that something goes on. `id` must be a number that no other activity of this process has.
pub fn start(id: u64, text: &str) -> String {
    line(&json!({"action": "start", "id": id, "level": LEVEL_TALKATIVE, "type": 0, "text": text, "fields": [], "parent": 0}))
}

/// Says that it does not go on.
pub fn stop(id: u64) -> String {
    line(&json!({"action": "stop", "id": id}))
}

/// Says something to people that they should know, at Nix's level for errors.
pub fn error(text: &str) -> String {
    line(&json!({"action": "msg", "level": 0, "msg": text}))
}

/// Says something to people who did not ask for silence.
pub fn info(text: &str) -> String {
    line(&json!({"action": "msg", "level": LEVEL_INFO, "msg": text}))
}

fn line(value: &Value) -> String {
    format!("@nix {value}\n")
}

/// Shown unless people ask for silence.
const LEVEL_INFO: u8 = 3;
/// Shown in a progress bar, and in a log to those who ask for more.
const LEVEL_TALKATIVE: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_note_is_one_line_whatever_it_says() {
        for text in [start(7, "two\nlines"), stop(7), error("\"quoted\"\r\n\u{1b}[1m"), info("plain")] {
            assert_eq!(text.matches('\n').count(), 1, "{text:?}");
            let value: Value = serde_json::from_str(text.strip_prefix("@nix ").expect("for Nix")).expect("JSON");
            assert!(value["action"].is_string(), "{value}");
        }
    }
}
