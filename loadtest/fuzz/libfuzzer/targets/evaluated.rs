//! Searches for breaches of the target of this name.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kiln_fuzz::Target::named("evaluated").expect("the target is listed").check(bytes);
});
