// Sends a job as a client in another language does: node send_job.mjs BROKER_URL QUEUE < job.json
// Prints {id, result} when Celery's result backend has the job's end.
import { readFileSync } from "node:fs";
import celery from "celery-node";

const [brokerUrl, queue] = process.argv.slice(2);
const job = JSON.parse(readFileSync(0, "utf8"));
const client = celery.createClient(brokerUrl, brokerUrl, queue);
const handle = client.createTask("nirvana.generate").applyAsync([job]);
const result = await handle.get(60_000);
console.log(JSON.stringify({ id: handle.taskId, result }));
await client.disconnect();
