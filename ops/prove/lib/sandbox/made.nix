# What a builder makes, and what becomes of it: items 26, 27 and 31–36 of the checklist.
{ shell, make, sees, system, ... }:
let
  leaf = make "leaf" { } "mkdir $out; echo leaf >$out/file";
  branch = make "branch" { } "mkdir $out; echo ${leaf} >$out/file";
in
{
  canonical = {
    items = [ 14 33 34 ];
    drv = make "canonical" { } ''
      mkdir $out; cd $out
      for mode in 000 400 444 644 755 777 100 010 001 711 1644; do echo $mode >file-$mode; chmod $mode file-$mode; done
      for mode in 500 555 700 755 1777; do mkdir dir-$mode; echo >dir-$mode/file; chmod $mode dir-$mode; done
      : >empty; mkdir dir-empty
      chmod 4755 file-755; chmod 2755 dir-755
      ln -s file-644 link; ln -s /nowhere dangling; ln -s .. up; ln -s dir-755 to-dir
      ln file-644 hard; ln file-755 dir-755/hard; ln -P link hard-link 2>/dev/null || ln -s file-644 hard-link
      touch -d '2001-01-01 00:00:00' file-444; touch -h -d '2001-01-01 00:00:00' link
      truncate -s 1M sparse
      mkdir -p 'deep/a/b/c/d/e/f'; echo >deep/a/b/c/d/e/f/file
      echo >'with space'; echo >"$(printf 'new\nline')"; echo >"$(printf 'bytes\377')"; echo >ümläut; echo >'*'; echo >.hidden
      chown 1000:100 file-644
      chmod 555 $out
    '';
  };
  one-file = { items = [ 34 ]; drv = make "one-file" { } "echo >$out; chmod 700 $out"; };
  one-link = { items = [ 34 ]; drv = make "one-link" { } "ln -s ${leaf}/file $out"; };
  dangling-link = { items = [ 33 34 ]; drv = make "dangling-link" { } "ln -s /nowhere/at/all $out"; };
  moved-into-place = {
    items = [ 34 ];
    drv = make "moved-into-place" { } "mkdir -p /build/tree/dir; echo >/build/tree/dir/file; mv /build/tree $out";
  };
  linked-within = {
    items = [ 34 ];
    drv = make "linked-within" { outputs = [ "out" "dev" ]; } "mkdir $out $dev; echo shared >$out/file; ln $out/file $dev/file";
  };
  references = {
    items = [ 35 ];
    drv = make "references" { inherit leaf branch; unused = make "unused" { } "echo >$out"; } ''
      mkdir $out; cd $out
      # The hash alone counts, wherever it is: across the borders of blocks, in links, in names, without the directory.
      hash=''${leaf#/nix/store/}; hash=''${hash%%-*}
      head -c 65520 /dev/zero >across; printf %s $hash >>across
      upper=$(echo ${make "upper" { } "echo >$out"} | tr a-z A-Z); echo $upper >upper-case
      echo $out >itself
    '';
  };
  references-in-a-link = { items = [ 35 ]; drv = make "references-in-a-link" { inherit leaf; } "mkdir $out; ln -s $leaf/file $out/link"; };
  references-in-a-name = { items = [ 35 ]; drv = make "references-in-a-name" { inherit leaf; } "mkdir $out; echo >$out/$(basename $leaf)"; };
  references-packed = { items = [ 35 ]; drv = make "references-packed" { inherit leaf; } "echo $leaf | gzip -n >$out"; };
  references-cut = {
    items = [ 35 ];
    drv = make "references-cut" { inherit leaf; } "hash=\${leaf#/nix/store/}; printf %s $hash | cut -c1-31 >$out";
  };
  outputs = {
    items = [ 21 36 ];
    drv = make "outputs" { outputs = [ "out" "bin" "dev" "lib" "doc" ]; } ''
      mkdir $out $bin $dev $lib $doc
      echo $lib $lib/itself >$lib/file
      echo $lib >$bin/file
      echo $bin $dev >$out/file
      echo $out >$doc/file
      echo >$dev/file
    '';
  };
  first-output-is-another = { items = [ 36 ]; drv = make "first-output-is-another" { outputs = [ "dev" "out" ]; } "echo >$out; echo $out >$dev"; };
  leaves-a-process = {
    items = [ 31 ];
    drv = make "leaves-a-process" { } ''
      mkdir $out
      (trap "" HUP TERM; setsid sh -c 'while :; do echo >>$out/late; sleep 0.01; done') >/dev/null 2>&1 &
      (exec setsid sleep 60) &
      while [ ! -e $out/late ]; do :; done
      rm $out/late; mkdir $out/late
    '';
  };
  demands-that-hold = {
    items = [ 26 ];
    drv = make "demands-that-hold"
      {
        inherit branch;
        allowedReferences = [ branch "out" ];
        allowedRequisites = [ branch leaf ];
        disallowedReferences = [ leaf ];
        disallowedRequisites = [ (make "never" { } "echo >$out") ];
      } "echo $branch $out >$out";
  };
  demands-of-outputs-that-hold = {
    items = [ 26 ];
    drv = make "demands-of-outputs-that-hold"
      {
        inherit branch;
        __structuredAttrs = true;
        outputChecks.out = { allowedReferences = [ branch ]; allowedRequisites = [ "out" branch leaf ]; maxSize = 1000; maxClosureSize = 10000; };
      } ''out=$(sed 's/.*"outputs":{"out":"\([^"]*\)".*/\1/' .attrs.json); echo ${branch} >$out'';
  };
  discarded-references = {
    items = [ 27 ];
    drv = make "discarded-references" { __structuredAttrs = true; unsafeDiscardReferences.out = true; }
      ''out=$(sed 's/.*"outputs":{"out":"\([^"]*\)".*/\1/' .attrs.json); echo ${branch} >$out'';
  };
}
