// @google/generative-ai, the legacy SDK.
import { CITY, KEY, MODEL, TOOLS, declarations, load, serve } from './driver.mjs';

const { GoogleGenerativeAI } = load('@google/generative-ai');
const model = (baseUrl, more) => new GoogleGenerativeAI(KEY).getGenerativeModel({ model: MODEL, ...more }, { baseUrl });
const tools = [{ functionDeclarations: declarations() }];

const unary = baseUrl => {
  const asked = model(baseUrl);
  return async (prompt, say) => say((await asked.generateContent(prompt)).response.text());
};

const stream = (baseUrl, more) => {
  const asked = model(baseUrl, more);
  return async (prompt, say) => {
    for await (const chunk of (await asked.generateContentStream(prompt)).stream) say(chunk.text());
  };
};

const tool = (baseUrl, streamed) => {
  const kept = model(baseUrl, { tools }).startChat();
  return async (prompt, say) => {
    let message = prompt;
    for (;;) {
      const sent = streamed ? await kept.sendMessageStream(message) : await kept.sendMessage(message);
      const answer = await sent.response;
      const calls = answer.functionCalls() ?? [];
      say(answer.text());
      if (!calls.length) return;
      message = calls.map(({ name, args }) => ({ functionResponse: { name, response: { result: TOOLS[name](args) } } }));
    }
  };
};

const chat = baseUrl => {
  const kept = model(baseUrl).startChat();
  return async (prompt, say) => {
    for await (const chunk of (await kept.sendMessageStream(prompt)).stream) say(chunk.text());
  };
};

await serve({
  unary,
  stream,
  structured: baseUrl => stream(baseUrl, { generationConfig: { responseMimeType: 'application/json', responseSchema: CITY } }),
  tool,
  tool_stream: baseUrl => tool(baseUrl, true),
  chat,
});
