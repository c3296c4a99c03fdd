# What a builder gets in files, from its recipe's attributes: items 20–25 and 30 of the checklist.
{ shell, make, sees, system, ... }:
let
  leaf = make "leaf" { } "mkdir $out; echo leaf >$out/file";
  branch = make "branch" { outputs = [ "out" "dev" ]; } "mkdir $out $dev; echo ${leaf} $out >$out/file; echo $out >$dev/file";
  source = builtins.toFile "source" "a source that refers to nothing\n";
  # A shell without associative arrays cannot read .attrs.sh: its output's path comes from the JSON.
  keep = ''
    out=$(sed 's/.*"outputs":{[^}]*"out":"\([^"]*\)".*/\1/' .attrs.json)
    mkdir $out; cp .attrs.json $out/attrs.json
    # A fact for each variable of the shell's file, and of the environment. Nix 2.8 names a directory outside of the sandbox.
    sed 's/^declare \(-[aA] \)\?\([^=]*\)=/\2\t\1/' .attrs.sh >$out/facts
    tr '\0' '\n' </proc/$$/environ | sed -e 's/=/\t/' -e 's/nix-build-.*drv-[0-9]*/nix-build-NAME.drv-N/' >>$out/facts
    sed 's/=.*//' .attrs.sh >$out/names
    modes >$out/modes
  '';
in
{
  pass-as-file = {
    items = [ 22 25 ];
    drv = make "pass-as-file"
      {
        text = "not a file";
        passAsFile = [ "one" "empty" "placeholder" "missing" ];
        one = "text with\nlines\n";
        empty = "";
        placeholder = "<${placeholder "out"}>";
      } ''
      mkdir $out
      cp $onePath $out/one; cp $emptyPath $out/empty; cp $placeholderPath $out/placeholder
      cat /proc/$$/environ >$out/environ
      modes >$out/modes
    '';
  };
  references-graph = {
    items = [ 24 25 ];
    drv = make "references-graph" { exportReferencesGraph = [ "one" leaf "two.x-y_z" branch "three" branch.dev "file" source ]; } ''
      mkdir $out; cp one two.x-y_z three file $out; stat -c '%n %F %a %u:%g' one file >$out/modes
    '';
  };
  references-graph-of-a-file-below = {
    items = [ 24 ];
    drv = make "references-graph-of-a-file-below" { exportReferencesGraph = [ "below" "${leaf}/file" ]; } "cp below $out";
  };
  references-graph-of-a-derivation = {
    items = [ 24 ];
    drv = make "references-graph-of-a-derivation" { exportReferencesGraph = [ "recipe" leaf.drvPath ]; } "cp recipe $out";
  };
  references-graph-structured = {
    items = [ 23 24 ];
    drv = make "references-graph-structured"
      { __structuredAttrs = true; exportReferencesGraph = { one = [ leaf ]; two = [ branch.dev source ]; }; }
      keep;
  };
  structured-attributes = {
    items = [ 19 21 23 25 ];
    drv = make "structured-attributes"
      {
        __structuredAttrs = true;
        outputs = [ "out" "dev" ];
        text = "with 'quotes' and\nlines, ü";
        integer = 42;
        negative = -7;
        large = 9007199254740993;
        fraction = 1.5;
        whole = 2.0;
        yes = true;
        no = false;
        nothing = null;
        list = [ 1 "two" true null 3.5 ];
        nested = { a = { b = [ ]; }; c = 1; };
        flat = { a = "x"; b = 2; c = null; };
        "not-a-name" = "left out of the shell's file";
        "_ok1" = "kept";
        "1st" = "left out";
        place = placeholder "dev";
        path = source;
      }
      (keep + "echo >$(sed 's/.*\"outputs\":{\"dev\":\"\\([^\"]*\\)\".*/\\1/' .attrs.json)");
  };
  scheduling-hints = {
    items = [ 30 ];
    drv = make "scheduling-hints" { preferLocalBuild = true; allowSubstitutes = false; } "env | sort >$out";
  };
}
