//! A farm that goes over from one signing key to another, as `ops/runbooks/keys.md` says, and a real Nix that trusts one of them.

use crate::builds::copy_with_nix;
use crate::crashes::Daemons;
use crate::farm::Place;

const SET: &str = r#"
{
  before = drv "before" "echo before > $out" [ ];
  between = drv "between" "echo between > $out" [ ];
  after = drv "after" "echo after > $out" [ ];
}
"#;

fn key(place: &Place, name: &str) -> String {
    place.run(&["keys", "generate", "--name", name, &format!("{name}.secret")]).expect_success();
    place.run(&["keys", "public", &format!("{name}.secret")]).expect_success().out().trim().to_owned()
}

#[test]
fn clients_go_over_from_one_key_to_the_next_and_can_read_everything_at_each_step() {
    let daemons = Daemons::with(SET);
    let place = &daemons.place;
    let (old, new) = (key(place, "test-1"), key(place, "test-2"));
    let file = place.path("coordinator.toml");
    let plain = std::fs::read_to_string(&file).expect("read");
    let secret = |name: &str| place.path(&format!("{name}.secret")).display().to_string();
    let steps = [
        ("before", format!("signing_key = '{}'\n", secret("test-1")), vec![&old]),
        ("between", format!("signing_key = '{}'\nsigning_keys = ['{}']\n", secret("test-1"), secret("test-2")), vec![&old, &new]),
        ("after", format!("signing_key = '{}'\nretired_keys = ['{old}']\n", secret("test-2")), vec![&new]),
    ];
    let _worker = daemons.start("worker");
    let mut built = Vec::new();
    for (attribute, lines, trusted) in steps {
        std::fs::write(&file, format!("{plain}{lines}")).expect("write");
        let coordinator = daemons.start("coordinator");
        daemons.wait_until_up();
        let path = place.run(&[&["build", "-f", "set.nix", "-A", attribute], &daemons.farm()[..]].concat()).expect_success();
        built.push(path.out().trim().to_owned());
        let status = place.run(&[&["status", "--json"], &daemons.farm()[..]].concat()).expect_success().json();
        let said: Vec<&str> = status["publicKey"].as_str().expect("text").split(' ').collect();
        assert_eq!(said, trusted, "{attribute}");
        let cache = status["cacheUrl"].as_str().expect("text");
        for key in trusted {
            for path in &built {
                // Nix remembers narinfos by the cache's address.
                let _absent_at_first = std::fs::remove_dir_all(place.path(".cache"));
                copy_with_nix(place, cache, key, path);
                std::fs::rename(place.path("nix"), place.path(&format!("nix-{attribute}-{}-{}", &key[..6], &path[11..20])))
                    .expect("make room");
            }
        }
        coordinator.signal("TERM");
        assert_eq!(coordinator.finish().0, 0);
    }
}

#[test]
fn two_keys_of_one_name_are_refused_with_it() {
    let daemons = Daemons::with("{ }");
    let place = &daemons.place;
    key(place, "test-1");
    let file = place.path("coordinator.toml");
    let plain = std::fs::read_to_string(&file).expect("read");
    let secret = place.path("test-1.secret").display().to_string();
    std::fs::write(&file, format!("{plain}signing_key = '{secret}'\nsigning_keys = ['{secret}']\n")).expect("write");
    let refused = place.run(&["coordinator", "--config", "coordinator.toml"]);
    assert_ne!(refused.code(), 0);
    assert!(refused.err().contains("test-1.secret") && refused.err().contains("has its name"), "{}", refused.err());
}
