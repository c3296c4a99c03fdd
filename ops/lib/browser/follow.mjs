// Looks at the page of a job that runs, and says which lines of its log came, until no more will come. Nobody reloads the page.
//
// From the environment: KILN_URL (a coordinator's HTTP address), KILN_TOKEN (a reader's token), KILN_JOB (the derivation's base name),
// CHROMIUM (the browser, else Debian's). Says `looking` once the page is there, `NUMBER TEXT` for each line at the end.
import { chromium } from "playwright-core";

const { KILN_URL: url, KILN_TOKEN: token, KILN_JOB: job, CHROMIUM: browserPath = "/usr/bin/chromium" } = process.env;
const browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });
const page = await browser.newPage({ baseURL: url });
await page.goto(`/ui/login?next=/ui/jobs/${job}`, { waitUntil: "domcontentloaded" });
await page.fill("#token", token);
await Promise.all([page.waitForURL(`**/ui/jobs/${job}`), page.click("button.main")]);
await page.evaluate(() => { globalThis.stayed = true; });
await page.waitForSelector("#log-lines li");
console.log("looking");
await page.waitForSelector("#log-lines:not([data-next])", { state: "attached", timeout: 100_000 });
if (!(await page.evaluate(() => globalThis.stayed))) throw new Error("the page was loaded anew");
const words = (all) => all.map((line) => [...line.children].map((part) => part.textContent.trim()).join(" "));
const lines = await page.locator("#log-lines li").evaluateAll(words);
console.log(lines.join("\n"));
await browser.close();
