// Makes, uses and deletes a cache and a file at the proxy at argv[2] with the key argv[3], from the text argv[4].
import { createRequire } from 'node:module';

const { GoogleGenAI } = createRequire(`${process.env.TEST_NODE_MODULES}/test.js`)('@google/genai');
const [baseUrl, apiKey, text] = process.argv.slice(2);
const ai = new GoogleGenAI({ apiKey, httpOptions: { baseUrl } });
const model = 'gemini-2.5-flash';
const found = {};

async function attempt(name, work) {
  try {
    found[name] = await work();
  } catch (error) {
    found[name] = [error.name, error.status ?? null, error.message];
  }
}
await attempt('cache', async () => {
  const made = await ai.caches.create({ model, config: { contents: text, displayName: 'c' } });
  await ai.caches.update({ name: made.name, config: { ttl: '60s' } });
  const used = await ai.models.generateContent({ model, contents: 'hi', config: { cachedContent: made.name } });
  await ai.caches.delete({ name: made.name });
  return used.text;
});
await attempt('file', async () => {
  const file = new Blob([text], { type: 'text/plain' });
  const made = await ai.files.upload({ file, config: { mimeType: 'text/plain' } });
  const part = { fileData: { fileUri: made.uri, mimeType: 'text/plain' } };
  const used = await ai.models.generateContent({ model, contents: [part] });
  await ai.files.delete({ name: made.name });
  return used.text;
});
console.log(JSON.stringify(found));
