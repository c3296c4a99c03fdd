//! Login: a token in, a cookie out.

use maud::html;

use crate::frame::{Document, Section};

/// Returns the page. `wrong` is what was wrong with the last try.
pub fn page(wrong: Option<&str>, next: &str) -> Document {
    let body = html! {
        div class="narrow panel" {
            h1 { "Log in" }
            @if let Some(wrong) = wrong { p class="notice bad" role="alert" { (wrong) } }
            p class="soft small" { "With a token that " code { "kiln token create" } " made. One of the scope admin may drain workers." }
            form method="post" action="/ui/login" {
                input type="hidden" name="next" value=(next);
                label for="token" { "Token" }
                input type="password" id="token" name="token" autocomplete="current-password" required;
                button class="main" { "Log in" }
            }
        }
    };
    Document::new("Log in", Section::Other, body)
}
