//! Short texts of each kind, right and wrong.

/// Returns the seeds by name.
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let path = "0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar";
    let hash = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
    let signature = format!("a:{}==", "A".repeat(86));
    let table: [(u8, &str, String); 31] = [
        (0, "bearer", "Bearer secret:1".to_owned()),
        // `anybody:secret:1`.
        (0, "basic", "Basic YW55Ym9keTpzZWNyZXQ6MQ==".to_owned()),
        (0, "other", "Digest secret:1".to_owned()),
        (0, "none", "Bearer".to_owned()),
        (0, "no-base64", "Basic !".to_owned()),
        (1, "zstd", format!("{hash}.nar.zst")),
        (1, "xz", format!("{hash}.nar.xz")),
        (1, "plain", "..nar.nar".to_owned()),
        (1, "other", "x.nar.br".to_owned()),
        (2, "path", path.to_owned()),
        (2, "derivation", format!("{path}.drv")),
        (2, "upwards", format!("{path}/../x")),
        (2, "short", "x".to_owned()),
        (3, "full", format!("/nix/store/{path}")),
        (3, "below", format!("/nix/store/{path}/bin")),
        (3, "elsewhere", format!("/gnu/store/{path}")),
        (4, "out", "out".to_owned()),
        (4, "list", "out,dev".to_owned()),
        (4, "dots", "..".to_owned()),
        (5, "key", "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=".to_owned()),
        (5, "signature", signature.clone()),
        (5, "colons", format!("a:{signature}")),
        (5, "no-name", signature[1..].to_owned()),
        (6, "nar", format!("fixed:r:sha256:{hash}")),
        (6, "text", format!("text:sha256:{hash}")),
        (6, "git", "fixed:git:sha1:0000000000000000000000000000000000000000".to_owned()),
        (6, "md5", format!("fixed:md5:{hash}")),
        (7, "base32", format!("sha256:{hash}")),
        (7, "base16", format!("sha256:{}", "0a".repeat(32))),
        (7, "sri", "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".to_owned()),
        (7, "long", format!("sha1:{hash}")),
    ];
    table.into_iter().map(|(kind, name, text)| (format!("{kind}-{name}"), [&[kind], text.as_bytes()].concat())).collect()
}
