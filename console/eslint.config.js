import js from "@eslint/js";
import a11y from "eslint-plugin-jsx-a11y";
import hooks from "eslint-plugin-react-hooks";
import ts from "typescript-eslint";

/** Primitives of Radix that insert `<style>` elements, which the content security policy forbids. */
const WITH_STYLE_ELEMENTS = ["AlertDialog", "ContextMenu", "Dialog", "Menubar", "OneTimePasswordField", "ScrollArea", "Select"];

export default ts.config(
  { ignores: ["node_modules", "src/api/schema.d.ts"] },
  js.configs.recommended,
  ...ts.configs.recommendedTypeChecked,
  a11y.flatConfigs.recommended,
  hooks.configs.flat.recommended,
  {
    languageOptions: { parserOptions: { projectService: { allowDefaultProject: ["eslint.config.js"] }, tsconfigRootDir: import.meta.dirname } },
    rules: {
      complexity: ["error", 12],
      "max-lines": ["error", 600],
      "@typescript-eslint/no-misused-promises": ["error", { checksVoidReturn: { attributes: false } }],
      "no-restricted-imports": [
        "error",
        {
          paths: [
            {
              name: "radix-ui",
              importNames: WITH_STYLE_ELEMENTS,
              message: "It inserts a <style> element, which the content security policy forbids. Use <dialog> or <select>.",
            },
          ],
        },
      ],
      "no-restricted-syntax": [
        "error",
        {
          selector: "JSXAttribute[name.name='dangerouslySetInnerHTML'], Property[key.name='dangerouslySetInnerHTML']",
          message: "Texts of users and models are never HTML.",
        },
        {
          selector: "AssignmentExpression > MemberExpression[property.name=/^(innerHTML|outerHTML)$/]",
          message: "Texts of users and models are never HTML.",
        },
      ],
    },
  },
  { files: ["eslint.config.js"], extends: [ts.configs.disableTypeChecked] },
);
