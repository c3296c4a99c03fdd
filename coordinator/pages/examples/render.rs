//! Writes every page of the fixtures into a directory, to be looked at.

#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

use std::path::Path;

use kiln_pages::assets;

fn main() {
    let dir = std::env::args().nth(1).expect("the directory to write to");
    for asset in [&assets::STYLE, &assets::SCRIPT, &assets::ICON] {
        std::fs::write(Path::new(&dir).join(asset.name()), asset.text).expect("the directory can be written");
    }
    for (name, page) in fixtures::pages() {
        let text = page.page(&fixtures::shell()).replace("/ui/assets/", "");
        std::fs::write(Path::new(&dir).join(format!("{name}.html")), text).expect("the directory can be written");
    }
}
