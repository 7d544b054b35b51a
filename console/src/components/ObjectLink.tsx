import { Link } from "@tanstack/react-router";
import { Fragment } from "react";

import { pageOf, type ObjectKind } from "./objects";
import { Copy } from "./Snippet";

/** What an id, or the name of a tuned model, is made of. */
const ID = /^[\w:./-]{1,256}$/;

interface ObjectLinkProps {
  id: string;
  /** The kind of an object whose id does not tell it, such as a model. */
  kind?: ObjectKind;
  /** Show a button that copies the id. */
  withCopy?: boolean;
}

/** Render the id of an object as a link to its page, or as it is where it has none. */
export function ObjectLink({ id, kind, withCopy = false }: ObjectLinkProps) {
  const page = pageOf(id, kind);
  const text = <code className="break">{id}</code>;
  return (
    <span className="id">
      {page ? <Link {...page.link}>{text}</Link> : text}
      {withCopy && <Copy text={id} />}
    </span>
  );
}

/** Render a text of JSON in which the ids of objects are links. */
export function LinkedJson({ text }: { text: string }) {
  return text.split('"').map((part, index) => {
    const page = ID.test(part) ? pageOf(part) : null;
    return (
      <Fragment key={index}>
        {index > 0 && '"'}
        {page ? <Link {...page.link}>{part}</Link> : part}
      </Fragment>
    );
  });
}
