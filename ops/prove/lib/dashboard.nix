# A few derivations for the dashboard's pages: a chain that is built, one that fails with colours and markup in its log, one that waits for
# it, and one that writes its log as long as somebody may look. Their attributes are what is asked for.
{ seed, system ? builtins.currentSystem }:
let
  found = builtins.filter builtins.pathExists [ "/usr/bin/busybox" "/bin/busybox" ];
  bootstrap = import ../../../loadtest/pkgset/busybox.nix {
    path = if found != [ ] then builtins.head found else throw "no busybox: install busybox-static";
  };
  job = name: needs: script: derivation {
    inherit name system seed needs;
    builder = "${bootstrap}/busybox";
    args = [ "sh" "-c" script ];
  };
  esc = builtins.fromJSON ''"\u001b"'';
in
rec {
  base = job "base-1.0" [ ] "echo 'Running phase: buildPhase'; echo base >$out";
  library = job "library-1.2" [ base ] "echo library >$out";
  program = job "program-2.0" [ library ] "echo program >$out";
  broken = job "broken-3.1" [ base ] ''
    echo 'Running phase: unpackPhase'
    echo 'Running phase: buildPhase'
    echo '${esc}[1;31merror:${esc}[0m <script>document.title="owned"</script> does not compile'
    exit 3
  '';
  talker = job "talker-1.0" [ ] ''
    echo 'Running phase: buildPhase'
    i=1; while [ $i -le 1500 ]; do echo "this is line $i"; i=$((i+1)); usleep 200000; done
    echo talked >$out
  '';
  behind = job "behind-0.1" [ broken ] "echo never >$out";
}
