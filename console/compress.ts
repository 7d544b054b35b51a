import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { brotliCompress, gzip } from "node:zlib";

import type { Plugin } from "vite";

const TEXT = /\.(js|css|html|svg|json)$/;

/**
 * Write a `.br` and a `.gz` beside each text file of the build, and print their whole size.
 *
 * Fails the build when the files are larger than `limit` bytes after brotli.
 */
export function compress({ limit }: { limit: number }): Plugin {
  let folder = "";
  return {
    name: "compress",
    apply: "build",
    configResolved(config) {
      folder = join(config.root, config.build.outDir);
    },
    async closeBundle() {
      const entries = await readdir(folder, { recursive: true, withFileTypes: true });
      const files = entries.filter((entry) => entry.isFile() && TEXT.test(entry.name));
      const sizes = await Promise.all(files.map((file) => compressFile(join(file.parentPath, file.name))));
      const bytes = sizes.reduce((sum, size) => sum + size, 0);
      console.log(`the console: ${files.length} files, ${Math.ceil(bytes / 1000)} kB compressed`);
      if (bytes > limit) throw new Error(`The console has ${bytes} bytes compressed; the limit is ${limit}.`);
    },
  };
}

async function compressFile(path: string): Promise<number> {
  const text = await readFile(path);
  const [brotli, zipped] = await Promise.all([promisify(brotliCompress)(text), promisify(gzip)(text, { level: 9 })]);
  await Promise.all([writeFile(`${path}.br`, brotli), writeFile(`${path}.gz`, zipped)]);
  return brotli.length;
}
