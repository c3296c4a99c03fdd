# Trivial derivations in any number: what a farm's own work costs. They need a busybox and nothing else.
#
#   nix-instantiate loadtest/pkgset/micro.nix --argstr shape deep --arg n 1000 --argstr seed run-7
#
#   shape  wide: n derivations, none needs another. deep: a chain of n. layered: rows of `width`, each needs three of the row before.
#   seed   part of every derivation: another seed makes n derivations that nobody has built
#   pause  how long each takes beside its own work, as busybox's `sleep` reads it: "0.3" are 300 ms without processor time
#   refs   whether an output names its inputs, so that closures grow with the depth; else dependencies are there for the build only
#   busybox  a static busybox, by its path in a real directory; the package set's cache is looked at first, then this machine's own
#
# The value is the list of what nothing else needs: all of wide, the end of deep, the last row of layered.
{ shape ? "wide"
, n ? 1000
, seed ? ""
, width ? 32
, refs ? false
, pause ? null
, busybox ? null
, system ? builtins.currentSystem
}:
let
  cache = (import ./cache.nix) + "/bootstrap/busybox";
  found = builtins.filter builtins.pathExists [ cache "/usr/bin/busybox" "/bin/busybox" ];
  bootstrap = import ./busybox.nix {
    path =
      if busybox != null then toString busybox
      else if found != [ ] then builtins.head found
      else throw "no busybox: give --argstr busybox PATH, or run loadtest/pkgset/fetch, or install busybox-static";
  };

  rest = if pause == null then "" else "${bootstrap}/busybox sleep ${pause}; ";

  job = number: needs: derivation {
    name = "micro-${shape}-${toString number}";
    inherit system seed needs;
    builder = "${bootstrap}/busybox";
    args = [ "sh" "-c" (rest + (if refs then "echo $name $seed $needs >$out" else "echo $name $seed >$out")) ];
  };

  numbers = from: count: builtins.genList (i: from + i) count;

  # Forced from its start: a chain that is evaluated from its end would need n levels of the evaluator's stack.
  deep = builtins.foldl' (before: number: let next = job number before; in builtins.seq next.drvPath [ next ]) [ ] (numbers 0 n);

  mod = a: b: a - b * (a / b);
  layered = builtins.foldl'
    (row: start:
      let
        size = builtins.length row;
        next = map
          (number:
            job number (if size == 0 then [ ] else map (offset: builtins.elemAt row (mod (number + offset) size)) [ 0 1 (width / 2) ]))
          (numbers start (if n - start < width then n - start else width));
      in
      builtins.seq (builtins.head next).drvPath next)
    [ ]
    (map (row: row * width) (numbers 0 ((n + width - 1) / width)));

  shapes = { inherit deep layered; wide = map (number: job number [ ]) (numbers 0 n); };
in
shapes.${shape} or (throw "no shape '${shape}': wide, deep or layered")
