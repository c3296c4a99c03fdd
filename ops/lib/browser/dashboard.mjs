// Visits every page of a running farm with Chromium and holds it against what is claimed of pages. Prints a line per claim.
//
// From the environment: KILN_URL (the farm's HTTP address), KILN_TOKEN (an administrator's token), KILN_SHOTS (where pictures go),
// CHROMIUM (the browser, else Debian's).
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const { KILN_URL: url, KILN_TOKEN: token, KILN_SHOTS: shots, CHROMIUM: browserPath = "/usr/bin/chromium" } = process.env;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const claims = [];
const claim = (what, figure, goal, holds) => {
  claims.push(holds);
  console.log(`${what}: ${figure} (${goal})${holds ? "" : "  FALLS SHORT"}`);
};
const api = async (path) => {
  const answer = await fetch(`${url}/api/v1${path}`, { headers: { authorization: `Bearer ${token}` } });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
};
const list = (lines, most = 6) => (lines.length === 0 ? "none" : `${lines.length}: ${lines.slice(0, most).join("; ")}`);

const browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });
const open = async (options) => {
  const context = await browser.newContext({ baseURL: url, ...options });
  const page = await context.newPage();
  page.said = [];
  page.on("console", (message) => message.type() === "error" && page.said.push(message.text()));
  page.on("pageerror", (error) => page.said.push(String(error)));
  page.on("request", (request) => request.url().startsWith(url) || page.said.push(`asks elsewhere: ${request.url()}`));
  return page;
};
const ms = (since) => `${(performance.now() - since).toFixed(0)} ms`;
const numbers = (text) => [...text.replaceAll(",", "").matchAll(/\d+/g)].map(Number);

// What there is to look at.
const builds = (await api("/builds")).builds;
const build = builds.find((build) => build.jobs.failed > 0);
const jobs = (await api(`/builds/${build.build}/jobs`)).jobs;
const failed = jobs.find((job) => job.state === "failed");
const drv = failed.derivation.split("/").pop();
const pages = { overview: "/ui/", build: `/ui/builds/${build.build}`, job: `/ui/jobs/${drv}`, fleet: "/ui/fleet", timeline: "/ui/timeline", cluster: "/ui/cluster", login: "/ui/login", absent: "/ui/builds/99999999" };

// Every page, in light and dark, on a desk and on a phone.
const said = [], found = [], wide = [], plain = [], large = [];
for (const colorScheme of ["light", "dark"]) {
  for (const [device, width] of [["desk", 1400], ["phone", 390]]) {
    const page = await open({ colorScheme, viewport: { width, height: 900 } });
    for (const [name, path] of Object.entries(pages)) {
      const answer = await page.goto(path);
      const where = `${name} (${colorScheme}, ${device})`;
      const status = name === "absent" ? 404 : 200;
      if (answer.status() !== status) plain.push(`${where}: ${answer.status()}`);
      if (!(answer.headers()["content-security-policy"] ?? "").includes("default-src 'none'")) plain.push(`${where}: no policy`);
      if ((await answer.body()).length > 300 * 1024) large.push(where);
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
      found.push(...violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => `${where}: ${v.id}: ${v.nodes[0].html.slice(0, 100)}`));
      const beyond = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      if (beyond > 0) wide.push(`${where}: by ${beyond} px`);
      await page.screenshot({ path: `${shots}/${name}-${colorScheme}-${device}.png`, fullPage: true });
      // A missing page is an error to the browser, and says so.
      said.push(...page.said.splice(0).filter((line) => !(name === "absent" && line.includes("404"))).map((line) => `${where}: ${line}`));
    }
    await page.context().close();
  }
}
claim("Pages that answer as they should, with a policy", list(plain), "no other", plain.length === 0);
claim("Said on the console, or asked elsewhere", list(said), "none", said.length === 0);
claim("Serious or critical findings of axe-core", list(found), "none", found.length === 0);
claim("Pages wider than their window", list(wide), "none", wide.length === 0);
claim("Pages above 300 KiB", list(large), "none", large.length === 0);

// Without a script.
const still = await open({ javaScriptEnabled: false });
const read = [];
for (const [name, path] of Object.entries(pages)) {
  await still.goto(path);
  if (!(await still.locator("h1").first().textContent())?.trim()) read.push(name);
}
claim("Pages that cannot be read without JavaScript", list(read), "none", read.length === 0);

// Numbers. The farm is at work: what the API says before and after a look is what the page says between, if both are the same.
const page = await open({ viewport: { width: 1400, height: 900 } });
const states = ["built", "failed", "running", "ready", "blocked"];
const compare = async (what, ask, look) => {
  for (let tries = 0; tries < 20; tries++) {
    const before = await ask(), shown = await look(), after = await ask();
    if (before.join() !== after.join()) continue;
    return claim(what, `${shown} and ${after}`, "equal", shown.join() === after.join());
  }
  claim(what, "the farm did not hold still", "equal", false);
};
for (const { build: number } of builds) {
  const ask = async () => { const { jobs } = await api(`/builds/${number}`); return states.map((state) => jobs[state]); };
  const look = async () => { await page.goto(`/ui/builds/${number}`); return numbers(await page.locator("#progress .legend").innerText()); };
  await compare(`Jobs of build ${number} by state on the page and of the API`, ask, look);
}
const workers = (await api("/workers")).workers;
await page.goto(pages.fleet);
const rows = await page.locator("#workers tbody tr").count();
claim("Workers on the page and of the API", `${rows} and ${workers.length}`, "equal", rows === workers.length);

// From a failure to its log, by keyboard.
await page.goto(pages.overview);
const broken = await page.locator("#answer .say").first().innerText();
claim("What is broken, at the top of the overview", broken.trim(), "1 package fails", broken.includes("1 package fails"));
const link = page.locator("#failures a", { hasText: "log" }).first();
await link.focus();
await page.keyboard.press("Enter");
await page.waitForURL(/\/ui\/jobs\/.*#log/);
const log = await page.locator("#log-lines").innerText();
claim("The failure's log", log.includes("does not compile") ? "shown" : log.slice(0, 80), "shown", log.includes("does not compile"));
const coloured = await page.locator("#log-lines .c1.b").innerText();
claim("Its colours", coloured, "error:", coloured === "error:");
claim("The title after hostile markup in a log", await page.title(), "not owned", !(await page.title()).includes("owned"));
await page.goto(`${pages.job}?q=COMPILE#log`);
claim("Lines that a search of the log marks", await page.locator("#log-lines mark").count(), "1", (await page.locator("#log-lines mark").count()) === 1);

// From the overview to the log of a job that runs, which grows by itself.
await page.goto(pages.overview);
const running = (await api("/jobs?state=running")).jobs.find((job) => job.derivation.includes("-talker-"));
await page.goto(`/ui/jobs/${running.derivation.split("/").pop()}`);
const lines = () => page.locator("#log-lines li").count();
const begun = await lines(), since = performance.now();
await page.locator(`#log-lines li:nth-child(${begun + 10})`).waitFor({ state: "attached", timeout: 20_000 });
claim("Ten more lines of a log that is being written, five a second", ms(since), "without a look at the whole page", (await lines()) >= begun + 10);
await page.screenshot({ path: `${shots}/job-running.png`, fullPage: true });

// An administrator drains a worker, and gives it jobs again.
const isDrained = async () => (await api("/workers")).workers[0].ailing?.state === "drained";
const anonymous = await page.goto(pages.fleet).then(() => page.locator("button", { hasText: "Drain" }).count());
claim("Buttons that change the farm, for who has not logged in", anonymous, "0", anonymous === 0);
await page.goto("/ui/login?next=/ui/fleet");
await page.fill("#token", "wrong");
await page.click("button.main");
claim("A wrong token", (await page.locator("[role=alert]").innerText()).trim(), "refused", page.url().includes("login"));
await page.fill("#token", token);
await Promise.all([page.waitForURL("**/ui/fleet"), page.click("button.main")]);
await page.locator("button", { hasText: "Drain" }).first().click();
await page.locator(".state", { hasText: "drained" }).first().waitFor();
claim("A worker after Drain", (await isDrained()) ? "drained" : "as it was", "drained", await isDrained());
await page.screenshot({ path: `${shots}/fleet-drained.png`, fullPage: true });
await page.locator("button", { hasText: "Undrain" }).first().click();
await page.locator(".state", { hasText: "well" }).first().waitFor();
claim("A worker after Undrain", (await isDrained()) ? "drained" : "takes jobs", "takes jobs", !(await isDrained()));

// Live: what happens elsewhere comes by itself.
await page.goto(pages.fleet);
await fetch(`${url}/api/v1/workers/${workers[0].worker}/drain`, { method: "POST", headers: { authorization: `Bearer ${token}` } });
const live = await page.locator(".state", { hasText: "drained" }).first().waitFor({ timeout: 10_000 }).then(() => true, () => false);
claim("A change that was made elsewhere", live ? "on the page by itself" : "not on the page", "on the page by itself", live);
await fetch(`${url}/api/v1/workers/${workers[0].worker}/undrain`, { method: "POST", headers: { authorization: `Bearer ${token}` } });

// The first tab stop skips to the content.
await page.goto(pages.overview);
await page.keyboard.press("Tab");
const first = await page.evaluate(() => document.activeElement.textContent);
claim("The first thing that Tab reaches", first, "Skip to content", first === "Skip to content");
await browser.close();
process.exit(claims.every(Boolean) ? 0 : 1);
