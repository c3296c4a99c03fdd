# What the exhaustion prover builds: for each round a build that takes too much of one thing, then three that run beside it.
#
#   nix-instantiate ops/prove/lib/exhaustion.nix --argstr busybox PATH --arg rounds 6 --argstr seed S
{ busybox, rounds, seed, system ? "x86_64-linux" }:
let
  shell = import ../../../loadtest/pkgset/busybox.nix { path = busybox; };
  make = name: script: derivation {
    inherit name system seed;
    builder = "${shell}/busybox";
    args = [ "sh" "-c" script "builder" ];
  };

  # On a loaded machine it may take longer than the silence limit to take too much.
  talking = "while sleep 1; do echo still; done & ";
  # Each waits at its end, so that it is not over before somebody ends it.
  exhausting = [
    (number: make "exhausts-memory-${number}" (talking + "head -c 1000000000 /dev/zero >/dev/shm/x; sleep 50"))
    (number: make "exhausts-processes-${number}" (talking + "i=0; while [ $i -lt 1000 ]; do sleep 50 & i=$((i+1)); done; sleep 50"))
    (number: make "exhausts-disk-${number}" (talking + "head -c 100000000 /dev/zero >/build/x && sleep 50"))
    (number: make "exhausts-files-${number}" (talking + "i=0; while [ $i -lt 6000 ]; do : >/build/$i || exit 1; i=$((i+1)); done; sleep 50"))
    (number: make "exhausts-log-${number}" "yes 'a line of log'; sleep 50")
    (number: make "exhausts-silence-${number}" "sleep 50")
  ];

  # Uses a little of everything for some seconds, in which any harm would show: memory, files, processes, log.
  beside = number: place: make "beside-${number}-${toString place}" ''
    set -e
    head -c 10000000 /dev/zero >/dev/shm/kept
    i=0
    while [ $i -lt 12 ]; do
      echo "$name $i"
      mkdir /build/$i
      echo "$name $i" | cat >/build/$i/file
      (sleep 0.2)
      i=$((i+1))
    done
    [ "$(wc -c </dev/shm/kept)" = 10000000 ]
    [ "$(cat /build/*/file | wc -l)" = 12 ]
    yes "$name" | head -n 5000 >$out
  '';

  mod = a: b: a - b * (a / b);
  round = index:
    let number = toString (index + 1); in
    [ (builtins.elemAt exhausting (mod index (builtins.length exhausting)) number) ] ++ map (beside number) [ 1 2 3 ];
in
builtins.concatLists (builtins.genList round rounds)
