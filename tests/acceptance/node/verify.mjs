// Verifies a webhook with the standardwebhooks library: node verify.mjs < {secret, headers, body}
// Prints the event, or says why it is refused and exits with 1.
import { readFileSync } from "node:fs";
import { Webhook } from "standardwebhooks";

const { secret, headers, body } = JSON.parse(readFileSync(0, "utf8"));
try {
  console.log(JSON.stringify(new Webhook(secret).verify(body, headers)));
} catch (error) {
  console.error(`${error.name}: ${error.message}`);
  process.exit(1);
}
