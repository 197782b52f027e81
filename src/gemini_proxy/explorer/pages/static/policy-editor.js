// An editor of policies in place of a text field: colors, line numbers, completion, faults underlined as one types.
"use strict";

(() => {
  const {
    autocompletion, bracketMatching, completionKeymap, defaultKeymap, drawSelection, EditorView, highlightSpecialChars,
    HighlightStyle, history, historyKeymap, indentService, indentUnit, indentWithTab, keymap, lineNumbers, linter,
    lintGutter, lintKeymap, StreamLanguage, syntaxHighlighting, syntaxTree, tags,
  } = CodeMirror;
  // Browsers show a nonce to scripts of the page only, and only through this property.
  const { nonce } = document.currentScript;
  const CHECK_AFTER_MS = 300;
  const INDENT = 4;

  const roles = {
    keyword: tags.keyword,
    atom: tags.atom,
    comment: tags.lineComment,
    string: tags.string,
    number: tags.number,
    operator: tags.operator,
    kind: tags.typeName,
    tool: tags.labelName,
    field: tags.propertyName,
    function: tags.function(tags.variableName),
    detector: tags.standard(tags.variableName),
  };
  // By class, so that the style sheet has the colors of both themes.
  const colours = HighlightStyle.define(Object.entries(roles).map(([role, tag]) => ({ tag, class: `policy-${role}` })));

  function language({ keywords, constants, kinds, types, callables, patterns }) {
    const starting = (pattern) => new RegExp(`^(?:${pattern})`);
    const [name, number, operator, tool] =
      ["name", "number", "operator", "tool"].map((kind) => starting(patterns[kind]));
    const words = new Map([
      ...keywords.map((word) => [word, "keyword"]),
      ...constants.map((word) => [word, "atom"]),
      ...[...Object.keys(kinds), ...types].map((word) => [word, "kind"]),
      ...callables.map((word) => [word.name, word.role === "detector" ? "detector" : "function"]),
    ]);

    function string(stream, state) {
      while (!stream.eol()) {
        if (stream.match(state.quote)) {
          state.quote = "";
          break;
        }
        if (stream.next() === "\\") stream.next();
      }
      // Only a text in three quotes goes on in the next line, or one whose line ends in a backslash.
      if (state.quote.length === 1 && !stream.string.endsWith("\\")) state.quote = "";
      return "string";
    }

    function token(stream, state) {
      if (state.quote) return string(stream, state);
      if (stream.eatSpace()) return null;
      if (stream.eat("#")) {
        stream.skipToEnd();
        return "comment";
      }
      const opened = stream.match(/^[rRfF]{0,2}("""|'''|"|')/);
      if (opened) {
        state.quote = opened[1];
        return string(stream, state);
      }
      const { before } = state;
      if (["is", "not"].includes(before) && stream.match(tool)) return "tool";
      if (stream.match(name)) {
        state.before = stream.current();
        if (before === ".") return "field";
        return words.get(state.before) ?? null;
      }
      if (stream.match(number)) return "number";
      const sign = stream.match(operator);
      if (!sign) stream.next();
      state.before = stream.current();
      return sign && !/^[()[\]{},.:]$/.test(state.before) ? "operator" : null;
    }

    return StreamLanguage.define({
      name: "policy",
      startState: () => ({ quote: "", before: "" }),
      copyState: (state) => ({ ...state }),
      token,
      languageData: { commentTokens: { line: "#" } },
      tokenTable: roles,
    });
  }

  // A line is indented as the one above it, and further if that opens a block.
  function indentation(context, at) {
    const opens = /:=?\s*(#.*)?$/.test(context.lineAt(at, -1).text);
    return context.lineIndent(at, -1) + (opens ? INDENT : 0);
  }

  // What an author has named, with the kind of an event where it is declared.
  function named(text) {
    const declared = text.matchAll(/\(\s*([A-Za-z_]\w*)\s*:\s*([A-Za-z_]\w*)/g);
    const defined = text.matchAll(/^\s*([A-Za-z_]\w*)\s*(?:\([^)]*\)\s*)?:=/gm);
    return new Map([...[...defined].map(([, name]) => [name, ""]), ...[...declared].map(([, name, kind]) => [name, kind])]);
  }

  // After the last import; without one, after the comment that heads the file.
  function importsPlace(text) {
    const imported = [...text.matchAll(/^(?:from|import)\b.*$\n?/gm)].at(-1);
    if (imported) return { at: imported.index + imported[0].length, after: "" };
    return { at: /^(?:(?:#.*)?\n)*\n/.exec(text)?.[0].length ?? 0, after: "\n" };
  }

  // Completes a name, and imports it where that is missing.
  function insertImported(view, { word: { name, module } }, from, to) {
    const text = view.state.doc.toString();
    const changes = [{ from, to, insert: name }];
    if (module && !new RegExp(`^from\\s.*\\bimport\\b[^\\n]*\\b${name}\\b`, "m").test(text)) {
      const { at, after } = importsPlace(text);
      changes.push({ from: at, insert: `from ${module} import ${name}\n${after}` });
    }
    const change = view.state.changes(changes);
    view.dispatch({ changes: change, selection: { anchor: change.mapPos(to, 1) }, userEvent: "input.complete" });
  }

  function completions({ keywords, constants, kinds, types, callables, methods, entities, modules }) {
    const options = (words, type) => words.map((label) => ({ label, type }));
    const events = options(Object.keys(kinds), "type");
    const everywhere = [
      ...callables.map((word) => ({
        label: word.name,
        detail: word.signature,
        info: word.module ? `${word.about} (from ${word.module})` : word.about,
        type: "function",
        word,
        apply: insertImported,
      })),
      ...options(keywords, "keyword"),
      ...options(constants, "constant"),
    ];

    // What may stand where a line ends so, if it is a place that only some names fit.
    function fitting(before, names) {
      let match;
      if (/^\s*from\s+[\w.]*$/.test(before)) return options(Object.keys(modules), "namespace");
      if ((match = /^\s*from\s+([\w.]+)\s+import\b.*[\s,]\w*$/.exec(before))) {
        return options(modules[match[1]] ?? [], "variable");
      }
      if (/\(\s*\w+\s*:\s*\w*$/.test(before)) return [...events, ...options(types, "type")];
      if (/(?:\bis(?:\s+not)?|[:,[(])\s*<\w*$/.test(before)) return options(entities, "enum");
      if (/\bfunction\.\w*$/.test(before)) return options(["name", "arguments"], "property");
      if ((match = /\b([A-Za-z_]\w*)\.\w*$/.exec(before)) && kinds[names.get(match[1])]) {
        return options(kinds[names.get(match[1])], "property");
      }
      // Parameters have the names that the configuration gives them.
      if (/\binput\.\w*$/.test(before)) return [];
      return /(?:\b[A-Za-z_]\w*|[)\]"'])\.\w*$/.test(before) ? options(methods, "method") : null;
    }

    return ({ state, pos, explicit }) => {
      if (["string", "comment"].includes(syntaxTree(state).resolveInner(pos, -1).name)) return null;
      const line = state.doc.lineAt(pos);
      const before = line.text.slice(0, pos - line.from);
      const names = named(state.doc.toString());
      const some = fitting(before, names);
      // A module is one name, with its dots.
      const [typed] = (/^\s*from\s+[\w.]*$/.test(before) ? /[\w.]*$/ : /(?:[A-Za-z_]\w*)?$/).exec(before);
      const found = some ?? [...options([...names.keys()], "variable"), ...everywhere];
      // Unasked, only where something is begun, and not what is there already: the next Enter is to end the line.
      const begun = typed ? !found.some(({ label }) => label === typed) : some !== null;
      return explicit || begun ? { from: pos - typed.length, options: found } : null;
    };
  }

  // The server counts lines and characters from 1, the editor UTF-16 units from 0.
  function offset(doc, line, column) {
    const { from, text } = doc.line(Math.min(Math.max(line, 1), doc.lines));
    return from + [...text].slice(0, column - 1).join("").length;
  }

  function diagnostic(doc, { line, column, message, severity }) {
    const from = offset(doc, line, column);
    const { to: end, text, from: start } = doc.lineAt(from);
    const word = /^(?:\w+|"[^"]*"|'[^']*'|\S)/u.exec(text.slice(from - start))?.[0] ?? "";
    // At the end of a line the character before is underlined: nothing has no width.
    return { from: word ? from : Math.max(start, from - 1), to: Math.min(end, from + word.length), message, severity };
  }

  /* Replaces a text field. `vocabulary` has the words of the language; `check(text)` returns faults with `line`,
     `column`, `message` and `severity`; `submit()` is for Ctrl+Enter. Returns what a page does with the editor. */
  function edit(field, { vocabulary, check, submit, labelledBy, describedBy }) {
    const run = () => { submit(); return true; };
    const source = async ({ state: { doc } }) => (await check(doc.toString())).map((fault) => diagnostic(doc, fault));
    const view = new EditorView({
      doc: field.value,
      parent: field.parentElement,
      extensions: [
        EditorView.cspNonce.of(nonce),
        EditorView.contentAttributes.of({
          "aria-labelledby": labelledBy, "aria-describedby": describedBy, autocapitalize: "off",
        }),
        lineNumbers(), lintGutter(), history(), drawSelection(), highlightSpecialChars(), bracketMatching(),
        indentUnit.of(" ".repeat(INDENT)), indentService.of(indentation),
        language(vocabulary), syntaxHighlighting(colours),
        autocompletion({ override: [completions(vocabulary)], icons: false }),
        linter(source, { delay: CHECK_AFTER_MS }),
        keymap.of([
          { key: "Ctrl-Enter", mac: "Cmd-Enter", run },
          // Tab indents; after Escape it leaves the editor, as everywhere else.
          ...completionKeymap, ...historyKeymap, ...lintKeymap, indentWithTab, ...defaultKeymap,
        ]),
      ],
    });
    // What is shown is what is sent, whatever the browser put into the field again.
    field.form.addEventListener("formdata", ({ formData }) => formData.set(field.name, view.state.doc.toString()));
    const label = document.getElementById(labelledBy);
    label.removeAttribute("for");
    label.addEventListener("click", () => view.focus());
    if (document.activeElement === field) view.focus();
    // A field that is not seen cannot say that it must be filled in: the server says it.
    field.required = false;
    field.hidden = true;

    return {
      get text() { return view.state.doc.toString(); },
      goTo(line, column) {
        const anchor = offset(view.state.doc, line, column);
        view.dispatch({ selection: { anchor, head: Math.min(anchor + 1, view.state.doc.length) }, scrollIntoView: true });
        view.focus();
      },
    };
  }

  globalThis.editPolicy = edit;
})();
