//! What people type first: a relative directory, a set that holds no derivation by itself, a second build at once, a farm that is gone.

use crate::farm::Place;

#[test]
fn a_farms_directory_may_be_relative() {
    let place = Place::new(r#"{ one = drv "one" "echo one > $out" [ ]; }"#);
    let built = place.run(&["build", "--dir", "here/farm", "-f", "set.nix", "-A", "one", "--to", "root"]).expect_success();
    let made = place.path("root").join(built.out().trim().trim_start_matches('/'));
    assert_eq!(std::fs::read_to_string(made).expect("it was brought"), "one\n");
    assert!(place.path("here/farm/store").is_dir());
}

#[test]
fn a_set_without_derivations_is_no_success() {
    // Nix does not look into lists of a set unless told to.
    let place = Place::new(r#"{ list = [ (drv "one" "echo one > $out" [ ]) ]; }"#);
    let _farm = place.up();
    let empty = place.run(&["build", "-f", "set.nix"]);
    assert_eq!(empty.code(), 2, "{}", empty.err());
    assert!(empty.err().contains("set.nix` evaluates to no derivation") && empty.err().contains("-A"), "{}", empty.err());
    place.run(&["build", "-f", "set.nix", "-A", "list"]).expect_success();
    let again = place.run(&["build", "-f", "set.nix", "-A", "list"]).expect_success();
    assert!(again.err().contains("nothing to build"), "{}", again.err());
}

#[test]
fn a_farm_that_died_is_known_as_gone_even_if_its_process_id_lives_again() {
    let place = Place::new(r#"{ one = drv "one" "echo one > $out" [ ]; }"#);
    let farm = place.up();
    let mut beacon = place.beacon();
    farm.kill_9();
    // As after a reboot: some other process, here this one, has the id.
    beacon["pid"] = std::process::id().into();
    std::fs::write(place.path("farm/farm.json"), beacon.to_string()).expect("write");
    let status = place.run(&["status"]);
    assert_eq!(status.code(), 3, "{}", status.err());
    assert!(status.err().contains("no farm runs in") && status.err().contains("kiln up"), "{}", status.err());
    place.run(&["build", "-f", "set.nix", "-A", "one"]).expect_success();
}
