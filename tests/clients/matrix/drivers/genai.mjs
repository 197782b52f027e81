// @google/genai.
import { CITY, KEY, MODEL, TOOLS, declarations, load, serve } from './driver.mjs';

const { GoogleGenAI } = load('@google/genai');
const client = baseUrl => new GoogleGenAI({ apiKey: KEY, httpOptions: { baseUrl } });

const unary = baseUrl => {
  const { models } = client(baseUrl);
  return async (contents, say) => say((await models.generateContent({ model: MODEL, contents })).text ?? '');
};

const stream = (baseUrl, config) => {
  const { models } = client(baseUrl);
  return async (contents, say) => {
    for await (const chunk of await models.generateContentStream({ model: MODEL, contents, config })) say(chunk.text ?? '');
  };
};

const tool = (baseUrl, streamed) => {
  const { models } = client(baseUrl);
  const config = { tools: [{ functionDeclarations: declarations() }] };
  return async (prompt, say) => {
    const contents = [{ role: 'user', parts: [{ text: prompt }] }];
    for (;;) {
      const call = { model: MODEL, contents, config };
      const answers = streamed ? await models.generateContentStream(call) : [await models.generateContent(call)];
      const calls = [];
      for await (const answer of answers) {
        say(answer.text ?? '');
        calls.push(...(answer.functionCalls ?? []));
      }
      if (!calls.length) return;
      contents.push({ role: 'model', parts: calls.map(functionCall => ({ functionCall })) });
      const parts = calls.map(({ name, args }) => ({ functionResponse: { name, response: { result: TOOLS[name](args) } } }));
      contents.push({ role: 'user', parts });
    }
  };
};

const chat = baseUrl => {
  const kept = client(baseUrl).chats.create({ model: MODEL });
  return async (message, say) => {
    for await (const chunk of await kept.sendMessageStream({ message })) say(chunk.text ?? '');
  };
};

await serve({
  unary,
  stream,
  structured: baseUrl => stream(baseUrl, { responseMimeType: 'application/json', responseSchema: CITY }),
  tool,
  tool_stream: baseUrl => tool(baseUrl, true),
  chat,
});
