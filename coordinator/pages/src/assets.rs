//! The files that pages name: one stylesheet, one script, one icon. Each has a name that follows from its bytes, so that browsers keep it for ever.

use std::sync::OnceLock;

/// A file of the dashboard.
#[derive(Debug)]
pub struct Asset {
    /// What it is.
    pub content_type: &'static str,
    /// Its bytes.
    pub text: &'static str,
    stem: &'static str,
    ending: &'static str,
    name: OnceLock<String>,
}

impl Asset {
    const fn new(stem: &'static str, ending: &'static str, content_type: &'static str, text: &'static str) -> Self {
        Self { content_type, text, stem, ending, name: OnceLock::new() }
    }

    /// Returns its name below `/ui/assets/`.
    pub fn name(&self) -> &str {
        self.name.get_or_init(|| format!("{}-{}.{}", self.stem, &blake3::hash(self.text.as_bytes()).to_hex()[..16], self.ending))
    }

    /// Returns where a browser finds it.
    pub fn href(&self) -> String {
        format!("{DIR}{}", self.name())
    }
}

/// The stylesheet.
pub static STYLE: Asset = Asset::new("kiln", "css", "text/css; charset=utf-8", include_str!("../assets/kiln.css"));
/// The script.
pub static SCRIPT: Asset = Asset::new("kiln", "js", "text/javascript; charset=utf-8", include_str!("../assets/kiln.js"));
/// The icon.
pub static ICON: Asset = Asset::new("kiln", "svg", "image/svg+xml", include_str!("../assets/kiln.svg"));

/// Returns the file of this name.
pub fn find(name: &str) -> Option<&'static Asset> {
    [&STYLE, &SCRIPT, &ICON].into_iter().find(|asset| asset.name() == name)
}

/// What browsers let the pages do: load what this farm serves, speak with it, and nothing else. No inline script, no inline style, no frame.
pub const SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Where the files are.
const DIR: &str = "/ui/assets/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_follows_from_the_bytes_and_no_other_is_found() {
        let name = STYLE.name();
        assert!(name.starts_with("kiln-") && name.ends_with(".css") && name.len() == 25, "{name}");
        assert_eq!(find(name).map(|asset| asset.content_type), Some("text/css; charset=utf-8"));
        assert!(find("kiln-0000000000000000.css").is_none() && find("").is_none());
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for asset in [&STYLE, &SCRIPT, &ICON] {
            let text = asset.text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("@import"), "{}", asset.name());
        }
    }
}
