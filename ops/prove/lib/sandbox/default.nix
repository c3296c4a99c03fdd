# What the sandbox prover builds under Nix and under Kiln: one derivation per aspect of the checklist, each with a busybox shell that
# writes what it sees, or makes what is to be judged. Values that differ from run to run by their nature (process ids, host user ids)
# are left out here, by the builders, so that everything that is written can be compared byte for byte.
#
#   nix-instantiate --eval --strict --json ops/prove/lib/sandbox --argstr busybox PATH --argstr probe PATH
#
# An aspect is { items, drv } and perhaps:
#   facts     "log": the builder's log is lines of `name<TAB>value`, for want of an output that may differ
#   refused   both must refuse it; { nix, kiln } are regular expressions that each one's message must match
#   needs     a file of the host, "kernel X.Y" or "family N" of sockets, without which it is left out
# An output's file `facts` holds lines `name<TAB>value`. Every other file is compared with its kind, mode, time and content.
{ busybox, probe, system ? "x86_64-linux" }:
let
  shell = import ../../../../loadtest/pkgset/busybox.nix { path = busybox; };

  # Begins every script.
  prelude = ''
    set -u
    say() { printf '%s\t%s\n' "$1" "$2" >>"$facts"; }
    # Says how a command ends, with its exit code, and its words.
    try() {
      what=$1
      shift
      words=$("$@" 2>&1 </dev/null) && code=0 || code=$?
      say "$what" "exit $code $(printf '%s' "$words" | tr '\n' ' ')"
    }
    # Prints what lies in /build, with modes and owners.
    modes() {
      for file in /build/.* /build/*; do
        if [ -f "$file" ]; then stat -c '%n %F %a %u:%g' "$file"; fi
      done
    }
  '';

  # A derivation of a script. `facts` is where `say` writes.
  make = name: attrs: script: derivation ({
    inherit name system;
    builder = "${shell}/busybox";
    args = [ "sh" "-c" (prelude + script) "builder" ];
    # What a job gets that says it can use several cores; the oracle is set to the same number.
    enableParallelBuilding = true;
  } // attrs);

  # A script that says facts into its one output.
  sees = name: attrs: script: make name attrs ("mkdir $out; facts=$out/facts; : >$facts\n" + script);

  # The program of syscall.c, alone in a directory.
  probeDir = builtins.path { name = "probe"; path = builtins.dirOf probe; };

  parts = { inherit shell make sees system; probe = probeDir; };
  all = builtins.foldl' (found: file: found // import file parts) { } [ ./sees.nix ./calls.nix ./files.nix ./made.nix ./fixed.nix ./refused.nix ];

  describe = name: { items, drv, facts ? "", refused ? null, needs ? "" }: {
    inherit items facts refused needs;
    drv = builtins.unsafeDiscardStringContext drv.drvPath;
    outputs = builtins.listToAttrs
      (map (output: { name = output; value = builtins.unsafeDiscardStringContext drv.${output}.outPath; }) (drv.outputs or [ "out" ]));
  };
in
builtins.mapAttrs describe all
