//! The program that a newer Nix runs for its `external-builders`, driven by hand: neither Debian has such a Nix.

use crate::hook::Hooked;

const SET: &str = r#"
rec {
  below = drv "below" "echo below > $out" [ ];
  pair = derivation { name = "pair"; system = "x86_64-linux"; builder = "${boot}/busybox"; outputs = [ "out" "doc" ];
    args = [ "sh" "-c" "echo makes a pair; echo $doc > $out; cat ${below} > $doc" ]; };
  bad = drv "bad" "echo it goes wrong; exit 3" [ ];
}
"#;

/// A change to a description.
type Change = dyn Fn(&mut serde_json::Value);

impl Hooked {
    /// Instantiates an attribute, and writes what Nix would describe of its build, with a change.
    fn describe(&self, attribute: &str, change: impl Fn(&mut serde_json::Value)) -> String {
        let drv = self.run("nix", "nix-instantiate", &["set.nix", "-A", attribute]).expect_success().out();
        let drv = drv.trim().split('!').next().expect("a path").to_owned();
        let shown = self.run("nix", "nix", &["show-derivation", &drv]).expect_success().json();
        let shown = &shown[&drv];
        let outputs: serde_json::Map<_, _> =
            shown["outputs"].as_object().expect("outputs").iter().map(|(name, output)| (name.clone(), output["path"].clone())).collect();
        let mut described = serde_json::json!({
            "version": 1, "builder": shown["builder"], "args": shown["args"], "env": shown["env"], "system": shown["system"],
            "inputPaths": [], "outputs": outputs, "topTmpDir": "/nowhere", "tmpDir": "/nowhere/build", "tmpDirInSandbox": "/build",
            "storeDir": "/nix/store", "realStoreDir": self.place.path("nix/nix/store"),
        });
        change(&mut described);
        let file = self.place.path("build.json");
        std::fs::write(&file, described.to_string()).expect("write");
        file.to_str().expect("text").to_owned()
    }
}

#[test]
fn what_a_newer_nix_describes_is_built_on_the_farm() {
    let hooked = Hooked::new(SET);
    let mut outputs = Vec::new();
    let file = hooked.describe("pair", |_| {});
    let described: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).expect("read")).expect("JSON");
    outputs.extend(["out", "doc"].map(|name| described["outputs"][name].as_str().expect("a path").to_owned()));
    let built = hooked.place.run(&["external-builder", "--config", "none", &file]).expect_success();
    assert!(built.err().contains("makes a pair"), "{}", built.err());
    assert_eq!(hooked.read("nix", &outputs[0]).trim(), outputs[1]);
    assert_eq!(hooked.read("nix", &outputs[1]), "below\n");
    let file = hooked.describe("bad", |_| {});
    let failed = hooked.place.run(&["external-builder", "--config", "none", &file]);
    assert_eq!(failed.code(), 1, "{}", failed.err());
    assert!(failed.err().contains("it goes wrong") && failed.err().contains("exit code 3"), "{}", failed.err());
}

#[test]
fn what_cannot_be_built_from_a_description_is_refused_with_what_helps() {
    let hooked = Hooked::new(SET);
    let scratch = |described: &mut serde_json::Value| {
        described["outputs"]["out"] = "/nix/store/0hm2f1psjpcwg8fijsmr4wwxrx59s092-below".into();
    };
    let elsewhere = |described: &mut serde_json::Value| {
        let text = described.to_string().replace("/nix/store/", "/gnu/store/").replace("\"/nix/store\"", "\"/gnu/store\"");
        *described = serde_json::from_str(&text).expect("JSON");
    };
    let changes: [(&Change, &str); 3] =
        [(&scratch, "use the build hook"), (&elsewhere, "no derivation in"), (&|described| described["version"] = 7.into(), "version 7")];
    for (change, wanted) in changes {
        let file = hooked.describe("below", change);
        let refused = hooked.place.run(&["external-builder", "--config", "none", &file]);
        assert_eq!(refused.code(), 2, "{}", refused.err());
        assert!(refused.err().contains(wanted), "{}", refused.err());
    }
}
