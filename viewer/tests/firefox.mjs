// Drives Firefox for tests/view/test_firefox.py: one command a line comes in as JSON, [name, ...arguments], and one
// answer a line goes out, {value} or {error}. Playwright drives a Firefox of its own making; this is the user's.
import { createInterface } from "node:readline";
import puppeteer from "puppeteer-core";

const NOWHERE = { "network.proxy.type": 1, "network.proxy.http": "127.0.0.1", "network.proxy.http_port": 9,
  "network.proxy.ssl": "127.0.0.1", "network.proxy.ssl_port": 9 };

const browser = await puppeteer.launch({
  browser: "firefox", executablePath: process.argv[2], headless: true, extraPrefsFirefox: NOWHERE,
});
const said = { complaints: [], requests: [] };
let tab;

const commands = {
  async open(url, width, height) {
    await tab?.close();
    said.complaints = [];
    said.requests = [];
    tab = await browser.newPage();
    await tab.setViewport({ width, height });
    tab.on("console", (message) => said.complaints.push(message.text()));
    tab.on("pageerror", (error) => said.complaints.push(String(error)));
    tab.on("dialog", (dialog) => {
      said.complaints.push(dialog.message());
      return dialog.dismiss();
    });
    tab.on("request", (request) => said.requests.push(request.url()));
    await tab.goto(url);
  },
  evaluate: (script) => tab.evaluate(script),
  press: (key) => tab.keyboard.press(key),
  click: (x, y) => tab.mouse.click(x, y),
  wheel: async (x, y, by) => {
    await tab.mouse.move(x, y);
    await tab.mouse.wheel({ deltaY: by });
  },
  screenshot: async () => (await tab.screenshot({ type: "png", encoding: "base64" })),
  said: () => said,
};

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...given] = JSON.parse(line);
  let answer;
  try {
    answer = { value: (await commands[name](...given)) ?? null };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
await browser.close();
