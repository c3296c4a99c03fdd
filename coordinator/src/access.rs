//! Who may see and do what over HTTP: tokens with scopes, of tenants; readers without a token, where the farm allows them.
//!
//! Invariant: nobody acts without a token; a tenant's token sees and steers what is the tenant's, or nobody's. Does not say what a route
//! needs (`http::api::routes` does).

use kiln_core::Sight;
use kiln_link::Role;

use crate::tokens::{self, Scope, Token};

/// Who may use the HTTP API.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    tokens: Vec<Token>,
    anonymous_readers: bool,
    /// The name under which others reach the HTTP address.
    name: Option<String>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The name of the token that was shown.
    pub(crate) token: Option<String>,
    /// What it is good for.
    pub(crate) standing: Standing,
    /// What is seen.
    pub(crate) sight: Sight,
    /// As whom it steers; none if it does not.
    pub(crate) role: Option<Role>,
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Nothing: the token is for uploads, or there is none.
    Nobody,
    /// Look, without a token.
    Anonymous,
    /// Look.
    Reader,
    /// And steer builds and jobs of its tenant.
    Submitter,
    /// And do what concerns everybody.
    Admin,
}

impl Standing {
    /// Returns it in one word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Anonymous => "anonymous",
            Self::Reader => "reader",
            Self::Submitter => "submitter",
            Self::Admin => "admin",
        }
    }
}

impl Access {
    /// Takes the tokens, whether everybody may look, and the `host:port` under which others reach the HTTP address.
    pub(crate) fn new(tokens: Vec<Token>, anonymous_readers: bool, address: Option<&str>) -> Self {
        Self { tokens, anonymous_readers, name: address.map(|address| without_port(address).to_owned()) }
    }

    /// Returns whether somebody may look without a token.
    pub(crate) fn is_open(&self) -> bool {
        self.anonymous_readers
    }

    /// Returns whether a request is for this coordinator, by its `Host`. The page of any name may have a browser ask an address that the name
    /// leads to for a moment (DNS rebinding), with that name as `Host`; what is no name cannot be taken for another. Who sends none is no
    /// browser.
    pub(crate) fn is_own(&self, host: Option<&str>) -> bool {
        let Some(host) = host.map(without_port) else { return true };
        let is_address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
        is_address || host.eq_ignore_ascii_case("localhost") || self.name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(host))
    }

    /// Returns who asks, by the `Authorization` header or a bare token; none if what is shown is no token of this farm.
    pub(crate) fn caller(&self, shown: Option<Shown<'_>>) -> Option<Caller> {
        let token = match shown {
            None => return Some(self.anonymous(None)),
            Some(Shown::Header(header)) => tokens::shown(&self.tokens, header)?,
            Some(Shown::Token(token)) => tokens::known(&self.tokens, token)?,
        };
        Some(match (token.scope, token.sight()) {
            (Scope::Reader, Some(sight)) => self.holder(token, Standing::Reader, sight),
            (Scope::Submitter, Some(sight)) => self.holder(token, Standing::Submitter, sight),
            (Scope::Admin, _) => self.holder(token, Standing::Admin, Sight::All),
            // A configuration with a reader of no tenant is refused at the start; who has one sees nothing.
            (Scope::Reader | Scope::Submitter | Scope::Upload | Scope::Trusted, _) => self.anonymous(Some(token)),
        })
    }

    fn anonymous(&self, token: Option<&Token>) -> Caller {
        let standing = if self.anonymous_readers { Standing::Anonymous } else { Standing::Nobody };
        Caller { token: token.map(|token| token.name.clone()), standing, sight: Sight::All, role: None }
    }

    fn holder(&self, token: &Token, standing: Standing, sight: Sight) -> Caller {
        // Where everybody may look, a token does not see less.
        let sight = if self.anonymous_readers { Sight::All } else { sight };
        Caller { token: Some(token.name.clone()), standing, sight, role: token.role() }
    }
}

fn without_port(host: &str) -> &str {
    host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())).map_or(host, |(name, _)| name)
}

/// How a token is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shown<'a> {
    /// In an `Authorization` header.
    Header(&'a str),
    /// As it is.
    Token(&'a str),
}

impl Token {
    /// Returns whether it is for uploads.
    pub(crate) fn uploads(&self) -> bool {
        match self.scope {
            Scope::Upload | Scope::Trusted => true,
            Scope::Reader | Scope::Submitter | Scope::Admin => false,
        }
    }

    /// Returns the rule that it breaks, if it does.
    pub(crate) fn objection(&self) -> Option<String> {
        let name = &self.name;
        match (self.scope, &self.tenant) {
            (Scope::Reader | Scope::Submitter, None) => Some(format!(
                "token `{name}` has no `tenant`: name the tenant whose builds it is for, as its certificates do; an `admin` is for all"
            )),
            (Scope::Upload | Scope::Trusted, Some(_)) => Some(format!("token `{name}` has a `tenant`: what is uploaded is nobody's")),
            (Scope::Reader | Scope::Submitter | Scope::Admin, _) | (Scope::Upload | Scope::Trusted, None) => None,
        }
    }

    /// Returns what the holder sees.
    fn sight(&self) -> Option<Sight> {
        self.tenant.clone().map(Sight::Of)
    }

    /// Returns as whom the holder steers: as the tenant's client, or as an administrator of the token's name.
    fn role(&self) -> Option<Role> {
        let name = self.tenant.as_ref().map_or(self.name.as_str(), |tenant| tenant.as_str());
        match self.scope {
            Scope::Submitter => name.parse().ok().map(Role::Client),
            Scope::Admin => Some(Role::Admin(name.parse().or_else(|_| "token".parse()).ok()?)),
            Scope::Reader | Scope::Upload | Scope::Trusted => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_wire::TenantName;

    use super::*;
    use crate::tokens::TokenHash;

    #[test]
    fn who_reads_or_submits_does_so_for_a_tenant() {
        for (scope, tenant, is_well) in [
            ("upload", "", true),
            ("trusted", "tenant = 'a'", false),
            ("reader", "", false),
            ("reader", "tenant = 'a'", true),
            ("submitter", "", false),
            ("submitter", "tenant = 'a'", true),
            ("admin", "", true),
        ] {
            let text = format!("name = 'ci'\nhash = '{}'\nscope = '{scope}'\n{tenant}", TokenHash::of("secret"));
            let token = toml::from_str::<Token>(&text).expect("a token");
            assert_eq!(token.objection().is_none(), is_well, "{scope} {tenant}: {:?}", token.objection());
        }
    }

    fn token(scope: Scope, tenant: Option<&str>) -> Token {
        let tenant = tenant.map(|name| TenantName::parse(name).expect("a name"));
        Token { name: "ci".to_owned(), hash: TokenHash::of("secret"), scope, tenant }
    }

    #[test]
    fn a_name_that_is_not_this_coordinators_is_not_answered_as_its_own() {
        let access = Access::new(Vec::new(), true, Some("c1.example.org:7480"));
        for (host, expected) in [
            (None, true),
            (Some("127.0.0.1:7480"), true),
            (Some("127.0.0.1"), true),
            (Some("[::1]:7480"), true),
            (Some("[::1]"), true),
            (Some("localhost:7480"), true),
            (Some("C1.example.org"), true),
            (Some("c1.example.org:80"), true),
            (Some("evil.example:7480"), false),
            (Some("localhost.evil.example"), false),
            (Some("c1.example.org.evil.example:7480"), false),
            (Some("127.0.0.1.evil.example"), false),
            (Some(""), false),
        ] {
            assert_eq!(access.is_own(host), expected, "{host:?}");
        }
    }

    #[test]
    fn a_token_gives_what_its_scope_says_and_no_other_is_known() {
        let a = Sight::Of(TenantName::parse("a").expect("a name"));
        for (scope, tenant, anonymous, standing, sight) in [
            (Scope::Upload, None, false, Standing::Nobody, Sight::All),
            (Scope::Trusted, None, true, Standing::Anonymous, Sight::All),
            (Scope::Reader, Some("a"), false, Standing::Reader, a.clone()),
            (Scope::Reader, None, false, Standing::Nobody, Sight::All),
            (Scope::Submitter, Some("a"), false, Standing::Submitter, a),
            (Scope::Submitter, Some("a"), true, Standing::Submitter, Sight::All),
            (Scope::Admin, None, false, Standing::Admin, Sight::All),
        ] {
            let access = Access::new(vec![token(scope, tenant)], anonymous, None);
            let caller = access.caller(Some(Shown::Token("secret"))).expect("known");
            assert_eq!((caller.standing, caller.sight), (standing, sight), "{scope:?} of {tenant:?}");
            assert_eq!(caller.role.is_some(), matches!(standing, Standing::Submitter | Standing::Admin), "{scope:?}");
            assert_eq!(access.caller(Some(Shown::Header("Bearer secret"))).map(|caller| caller.standing), Some(standing));
            for wrong in ["secre", "", "Bearer secret"] {
                assert_eq!(access.caller(Some(Shown::Token(wrong))), None, "{wrong}");
            }
            let expected = if anonymous { Standing::Anonymous } else { Standing::Nobody };
            assert_eq!(access.caller(None).map(|caller| caller.standing), Some(expected));
        }
    }
}
