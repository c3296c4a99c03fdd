# A derivation that makes one empty file with a static program, and has `count` directories of `dir` as inputs.
{ dir, noop, count, seed }:
derivation {
  name = "cost-${seed}";
  system = "x86_64-linux";
  builder = builtins.path { path = noop; name = "program"; };
  inputs = builtins.genList (number: builtins.path { path = dir + "/${toString number}"; name = "input-${toString number}"; }) count;
}
