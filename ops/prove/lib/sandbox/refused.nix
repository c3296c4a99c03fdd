# What is refused: items 24, 26, 28, 29 and 32–36 of the checklist. Each side's own words say that it was refused for this reason.
{ shell, make, sees, system, ... }:
let
  leaf = make "leaf" { } "mkdir $out; echo leaf >$out/file";
  branch = make "branch" { } "mkdir $out; echo ${leaf} >$out/file";

  refused = items: nix: kiln: name: attrs: script: { inherit items; refused = { inherit nix kiln; }; drv = make name attrs script; };
  both = items: words: refused items words words;
  reference = refused [ 26 ] "not allowed to refer to" "is not allowed to refer to";
  structured = checks: { __structuredAttrs = true; outputChecks.out = checks; };
  place = ''out=$(sed 's/.*"outputs":{"out":"\([^"]*\)".*/\1/' .attrs.json); '';
  suspicious = refused [ 33 ] "suspicious ownership or permission" "suspicious ownership or permission";

  table = {
    exit-1 = both [ 32 ] "failed with exit code 1" "exit-1" { } "echo >$out; exit 1";
    exit-77 = both [ 32 ] "failed with exit code 77" "exit-77" { } "exit 77";
    exit-255 = both [ 32 ] "failed with exit code 255" "exit-255" { } "exit 255";
    child-killed = both [ 32 ] "failed with exit code 137" "child-killed" { } "sh -c 'kill -9 $$'; exit $?";
    no-such-builder = {
      items = [ 32 ];
      refused = { nix = "failed"; kiln = "could not be executed: No such file or directory"; };
      drv = derivation { name = "no-such-builder"; inherit system; builder = "${shell}/absent"; };
    };
    builder-that-is-a-directory = {
      items = [ 32 ];
      refused = { nix = "failed"; kiln = "could not be executed: Permission denied"; };
      drv = derivation { name = "builder-that-is-a-directory"; inherit system; builder = "${shell}"; };
    };

    missing-output = refused [ 33 ] "failed to produce output path" "failed to produce output `out`" "missing-output" { } ":";
    missing-second-output = refused [ 33 ] "failed to produce output path" "failed to produce output `dev`"
      "missing-second-output" { outputs = [ "out" "dev" ]; } "echo >$out";
    group-writable = suspicious "group-writable" { } "mkdir $out; chmod 775 $out";
    other-writable = suspicious "other-writable" { } "echo >$out; chmod 646 $out";
    fifo = refused [ 33 ] "unsupported type|neither a file" "has unsupported type `fifo`" "fifo" { } "mkdir $out; mkfifo $out/fifo";
    fifo-as-output = refused [ 33 ] "unsupported type" "has unsupported type `fifo`" "fifo-as-output" { } "mkfifo -m 444 $out";
    device = both [ 33 ] "failed with exit code 9" "device" { } "mknod $out c 1 3 || exit 9";
    hard-link-of-an-input = both [ 34 ] "failed with exit code 9" "hard-link-of-an-input" { inherit leaf; } "ln $leaf/file $out || exit 9";
    hard-link-of-etc = both [ 34 ] "failed with exit code 9" "hard-link-of-etc" { } "ln /etc/passwd $out || exit 9";
    cycle = refused [ 36 ] "cycle detected" "cycle" "cycle" { outputs = [ "out" "dev" ]; } "echo $dev >$out; echo $out >$dev";

    allowed-references = reference "allowed-references" { inherit leaf; allowedReferences = [ ]; } "echo $leaf >$out";
    allowed-references-self = reference "allowed-references-self" { allowedReferences = [ ]; } "echo $out >$out";
    disallowed-references = reference "disallowed-references" { inherit leaf; disallowedReferences = [ leaf ]; } "echo $leaf >$out";
    allowed-requisites = reference "allowed-requisites" { inherit branch; allowedRequisites = [ branch ]; } "echo $branch >$out";
    disallowed-requisites = reference "disallowed-requisites" { inherit branch; disallowedRequisites = [ leaf ]; } "echo $branch >$out";
    illegal-specifier = refused [ 26 ] "illegal reference specifier" "illegal reference specifier"
      "illegal-specifier" { allowedReferences = [ "elsewhere" ]; } "echo >$out";
    checks-allowed-references = reference "checks-allowed-references" (structured { allowedReferences = [ ]; }) (place + "echo ${leaf} >$out");
    checks-disallowed-references = reference "checks-disallowed-references"
      (structured { disallowedReferences = [ leaf ]; }) (place + "echo ${leaf} >$out");
    checks-allowed-requisites = reference "checks-allowed-requisites" (structured { allowedRequisites = [ branch ]; }) (place + "echo ${branch} >$out");
    checks-disallowed-requisites = reference "checks-disallowed-requisites"
      (structured { disallowedRequisites = [ leaf ]; }) (place + "echo ${branch} >$out");
    checks-requisites-self = reference "checks-requisites-self" (structured { allowedRequisites = [ ]; }) (place + "echo $out >$out");
    checks-size = refused [ 26 ] "too large at" "is too large at" "checks-size" (structured { maxSize = 200; }) (place + "head -c 500 /dev/zero >$out");
    checks-closure-size = refused [ 26 ] "is too large at" "closure of output `out` is too large at"
      "checks-closure-size" (structured { maxClosureSize = 600; }) (place + "echo ${branch} >$out");

    graph-file-name = refused [ 24 ] "invalid file name" "is no file name" "graph-file-name" { exportReferencesGraph = [ "../name" leaf ]; } "echo >$out";
    graph-of-a-stranger = refused [ 24 ] "because it is not in the input closure" "is not in the closure of the inputs"
      "graph-of-a-stranger" { exportReferencesGraph = [ "name" "/nix/store/00000000000000000000000000000000-stranger" ]; } "echo >$out";
    graph-odd = refused [ 24 ] "odd number of tokens" "pairs of a file name and a store path"
      "graph-odd" { exportReferencesGraph = [ "name" ]; } "echo >$out";

    no-chroot = refused [ 28 ] "has '__noChroot' set" "__noChroot" "no-chroot" { __noChroot = true; } "echo >$out";
    impure-host-deps = refused [ 28 ] "requested impure path" "__impureHostDeps" "impure-host-deps" { __impureHostDeps = "/etc/shadow"; } "echo >$out";
    unknown-feature = refused [ 29 ] "is required to build" "lacks teleport|has feature teleport"
      "unknown-feature" { requiredSystemFeatures = [ "teleport" ]; } "echo >$out";
    unknown-system = refused [ 29 ] "is required to build" "system"
      "unknown-system" { system = "vax-netbsd"; } "echo >$out";
  };
in
table
