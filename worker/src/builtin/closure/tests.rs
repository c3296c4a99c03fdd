//! What names lead to, and that none leads out.

use super::super::testing::{Store, full, short};

#[test]
fn a_name_leads_to_what_the_inputs_hold_and_never_to_the_host() {
    let store = Store::new(&[
        "a: bin/tool=1 to-b→{b}/lib up→../../../../etc/shadow abs→/etc/shadow host→/etc self→self in→bin/../bin/tool null→/dev/null \
         ring-1→ring-2 ring-2→ring-1 slash→/ store→/nix/store up-and-down→{b}/../{a}/bin",
        "b: lib/x=2",
        "c: .→{a}",
        "d: .=text",
    ]);
    let too_many = "it leads through too many symbolic links";
    let table = [
        ("{a}", "Directory {a}"),
        ("{a}/bin/tool", "File {a}/bin/tool"),
        ("{a}//bin/./tool", "File {a}/bin/tool"),
        ("{a}/to-b/x", "File {b}/lib/x"),
        ("{a}/to-b/../lib", "Directory {b}/lib"),
        ("{a}/in", "File {a}/bin/tool"),
        ("{c}/bin/tool", "File {a}/bin/tool"),
        ("{c}", "Directory {a}"),
        ("{d}", "File {d}"),
        ("{d}/", "nothing"),
        ("{d}/.", "nothing"),
        ("{d}/..", "nothing"),
        ("{a}/absent", "nothing"),
        ("{a}/up", "nothing"),
        ("{a}/abs", "nothing"),
        ("{a}/host/shadow", "nothing"),
        ("{a}/host", "Directory /etc"),
        ("{a}/host/passwd", "File /etc/passwd"),
        ("{a}/null", "File /dev/null"),
        ("{a}/slash", "Directory /"),
        ("{a}/slash/root", "nothing"),
        ("{a}/slash/usr", "nothing"),
        ("{a}/slash/nix/store", "Directory /nix/store"),
        ("{a}/store/../../bin/sh", "File /bin/sh"),
        ("/../..", "Directory /"),
        ("/nix/var", "nothing"),
        ("/store", "nothing"),
        ("/nix/store/absent", "nothing"),
        ("/etc/shadow", "nothing"),
        ("/proc/self/fd", "nothing"),
        ("/proc/1", "nothing"),
        ("/dev/kvm", "nothing"),
        ("{a}/self", too_many),
        ("{a}/ring-1", too_many),
        ("bin", "it is not an absolute path"),
        ("", "it is not an absolute path"),
        ("{a}/b\0c", "it holds a NUL byte"),
    ];
    for (name, expect) in table {
        let found = match store.closure.resolve(full(name).as_bytes()) {
            Ok(Some(place)) => format!("{:?} {}", place.kind, short(&String::from_utf8_lossy(&place.path))),
            Ok(None) => "nothing".into(),
            Err(error) => error.to_string(),
        };
        assert!(found == expect || found.ends_with(&format!(": {expect}")), "{name}: {found}");
    }
    let long = [full("{a}/").as_bytes(), &[b'x'; 5000]].concat();
    assert!(store.closure.resolve(&long).expect_err("too long").to_string().ends_with("it is too long"));
    let part = [full("{a}/").as_bytes(), &[b'x'; 300]].concat();
    assert!(store.closure.resolve(&part).expect_err("too long").to_string().ends_with("the name is too long"));
}

#[test]
fn only_inputs_have_content() {
    let store = Store::new(&["a: text=12345 dir/b dir/a host→/etc hosts→/etc/hosts"]);
    let place = |name: &str| store.closure.resolve(full(name).as_bytes()).expect("a name").expect("is there");
    assert_eq!(store.closure.list(&place("{a}/dir")).expect("lists"), [b"a".to_vec(), b"b".to_vec()]);
    assert_eq!(store.closure.read(place("{a}/text"), 5).expect("reads"), b"12345");
    let outside = "it lies outside of the job's inputs";
    let table = [
        (store.closure.list(&place("{a}/host")).map(drop), outside),
        (store.closure.list(&place("/nix/store")).map(drop), outside),
        (store.closure.read(place("{a}/hosts"), 5).map(drop), outside),
        (store.closure.read(place("{a}/dir"), 5).map(drop), outside),
        (store.closure.read(place("{a}/text"), 4).map(drop), "it has more than 4 bytes"),
    ];
    for (found, words) in table {
        let error = found.expect_err(words);
        assert!(error.to_string().ends_with(words) && !error.is_infrastructure(), "{error}");
    }
}
