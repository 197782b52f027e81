// Asks the proxy at argv[2] with the key argv[3] what argv[4] says, and prints what the SDK made of the answers.
import { createRequire } from 'node:module';

const { GoogleGenAI } = createRequire(`${process.env.TEST_NODE_MODULES}/test.js`)('@google/genai');
const [baseUrl, apiKey, contents] = process.argv.slice(2);
const ai = new GoogleGenAI({ apiKey, httpOptions: { baseUrl } });
const model = 'gemini-2.5-flash';
const found = { chunks: [] };

try {
  found.text = (await ai.models.generateContent({ model, contents })).text;
} catch (error) {
  found.raised = [error.name, error.status, error.message];
}
for await (const chunk of await ai.models.generateContentStream({ model, contents })) {
  found.chunks.push([chunk.text, chunk.candidates[0].finishReason ?? null]);
}
const chat = ai.chats.create({ model });
for await (const _ of await chat.sendMessageStream({ message: contents }));
found.history = chat.getHistory(true).map(turn => [turn.role, turn.parts.map(part => part.text).join('')]);
console.log(JSON.stringify(found));
