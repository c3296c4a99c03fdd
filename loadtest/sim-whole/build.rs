//! Makes this program's `getrandom` visible to crates that look it up by name while the program runs.

fn main() {
    println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol=getrandom");
}
