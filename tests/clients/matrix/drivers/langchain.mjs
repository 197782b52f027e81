// @langchain/google-genai. The application keeps the history of a chat.
import { KEY, MODEL, SCHEMAS, TOOLS, load, serve } from './driver.mjs';

const { ChatGoogleGenerativeAI } = load('@langchain/google-genai');
const { HumanMessage, ToolMessage } = load('@langchain/core/messages');
const { z } = load('zod');
const model = baseUrl => new ChatGoogleGenerativeAI({ model: MODEL, apiKey: KEY, baseUrl });
const tools = Object.entries(SCHEMAS).map(([name, [description, argument]]) => ({
  type: 'function',
  function: {
    name,
    description,
    parameters: { type: 'object', properties: { [argument]: { type: 'string' } }, required: [argument] },
  },
}));

const unary = baseUrl => {
  const asked = model(baseUrl);
  return async (prompt, say) => say((await asked.invoke(prompt)).text);
};

const stream = baseUrl => {
  const asked = model(baseUrl);
  return async (prompt, say) => {
    for await (const chunk of await asked.stream(prompt)) say(chunk.text);
  };
};

const structured = baseUrl => {
  const asked = model(baseUrl).withStructuredOutput(z.object({ city: z.string() }), { method: 'jsonSchema' });
  return async (prompt, say) => {
    let found;
    for await (found of await asked.stream(prompt));
    say(JSON.stringify(found));
  };
};

const tool = (baseUrl, streamed) => {
  const asked = model(baseUrl).bindTools(tools);
  return async (prompt, say) => {
    const messages = [new HumanMessage(prompt)];
    for (;;) {
      let answer;
      if (streamed) for await (const chunk of await asked.stream(messages)) answer = answer ? answer.concat(chunk) : chunk;
      else answer = await asked.invoke(messages);
      say(answer.text);
      if (!answer.tool_calls?.length) return;
      messages.push(answer);
      for (const { name, args, id } of answer.tool_calls) {
        messages.push(new ToolMessage({ content: TOOLS[name](args), tool_call_id: id ?? name, name }));
      }
    }
  };
};

await serve({ unary, stream, structured, tool, tool_stream: baseUrl => tool(baseUrl, true) });
