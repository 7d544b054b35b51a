import { QueryClientProvider } from "@tanstack/react-query";
import { cleanup, fireEvent, render, screen } from "@testing-library/react";
import { afterEach, beforeEach, expect, it, vi } from "vitest";

import { ApiError, queries } from "@/api/client";
import { ConfirmButton } from "@/components/Confirm";
import { Field, Input, Select } from "@/components/Field";
import { FormDialog } from "@/components/Form";

beforeEach(() => {
  HTMLDialogElement.prototype.showModal = function open(this: HTMLDialogElement) {
    this.open = true;
  };
});

afterEach(cleanup);

function show(element: React.ReactElement) {
  render(<QueryClientProvider client={queries}>{element}</QueryClientProvider>);
}

function showForm(onSubmit: () => Promise<unknown>, onClose: () => void) {
  show(
    <FormDialog title="New schedule" action="Create" failure="The schedule was not created" onSubmit={onSubmit} onClose={onClose}>
      <Field label="Times" hint="Five fields." param="cron">
        <Input />
      </Field>
      <Field label="Name" param="name">
        <Input />
      </Field>
    </FormDialog>,
  );
}

it("shows an error at the field of the parameter that it names, and keeps the dialog open", async () => {
  const onClose = vi.fn();
  showForm(() => Promise.reject(new ApiError(400, "This is no cron expression.", "invalid_value", "cron")), onClose);

  fireEvent.click(screen.getByRole("button", { name: "Create" }));

  await screen.findByText("The schedule was not created");
  const [times, name] = [screen.getByLabelText("Times"), screen.getByLabelText("Name")];
  expect([times, name].map((input) => input.getAttribute("aria-invalid"))).toEqual(["true", null]);
  expect(document.getElementById(times.getAttribute("aria-describedby")!)!.textContent).toBe("This is no cron expression.");
  expect(onClose).not.toHaveBeenCalled();
});

it("closes the dialog of a form once the server has accepted it, and sends it only once meanwhile", async () => {
  const closed = Promise.withResolvers<void>();
  const answer = Promise.withResolvers<void>();
  const onSubmit = vi.fn(() => answer.promise);
  showForm(onSubmit, closed.resolve);
  const create = screen.getByRole("button", { name: "Create" });

  fireEvent.submit(create.closest("form")!);
  await vi.waitFor(() => expect(create).toHaveProperty("disabled", true), { timeout: 30_000 });
  fireEvent.submit(create.closest("form")!);
  answer.resolve();

  await closed.promise;
  expect(onSubmit).toHaveBeenCalledOnce();
});

it("asks before it does something, and says why it could not", async () => {
  const remove = vi.fn(() => Promise.reject(new ApiError(409, "The file is in use.")));
  show(
    <ConfirmButton label="Delete" name="Delete a.txt" title="Delete this file?" action="Delete the file" onConfirm={remove}>
      <p>It is gone for good.</p>
    </ConfirmButton>,
  );

  fireEvent.click(screen.getByRole("button", { name: "Delete a.txt" }));
  screen.getByText("It is gone for good.");
  expect(remove).not.toHaveBeenCalled();
  fireEvent.click(screen.getByRole("button", { name: "Delete the file" }));

  await screen.findByText("The file is in use.");
  fireEvent.click(screen.getByRole("button", { name: "Keep it" }));
  expect(screen.queryByRole("dialog")).toBeNull();
});

it("shows a value of the address that is none of the choices as it is", () => {
  show(<Select aria-label="Model" value="gone" onChange={() => undefined} options={[["", "All"], ["small", "Small"]]} />);

  expect(screen.getByLabelText("Model")).toHaveProperty("value", "gone");
  expect(screen.getAllByRole("option").map((option) => option.textContent)).toEqual(["All", "Small", "gone"]);
});
