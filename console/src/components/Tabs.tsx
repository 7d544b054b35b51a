import { Tabs as Primitive } from "radix-ui";
import type { ReactNode } from "react";

interface TabsProps {
  label: string;
  /** The id of the open tab; keep it in the address, so that links survive a reload. */
  value: string;
  onChange: (id: string) => void;
  tabs: readonly { id: string; title: ReactNode; content: ReactNode }[];
}

/** Render tabs; only the open one is rendered. */
export function Tabs({ label, value, onChange, tabs }: TabsProps) {
  return (
    <Primitive.Root value={value} onValueChange={onChange} className="tabs">
      <Primitive.List className="tab-list" aria-label={label}>
        {tabs.map((tab) => (
          <Primitive.Trigger key={tab.id} value={tab.id} className="tab">
            {tab.title}
          </Primitive.Trigger>
        ))}
      </Primitive.List>
      {tabs.map((tab) => (
        <Primitive.Content key={tab.id} value={tab.id} className="tab-content">
          {tab.content}
        </Primitive.Content>
      ))}
    </Primitive.Root>
  );
}
