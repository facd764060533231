import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// Fixed file names: the bundle is kept in version control, and its age is told by a fingerprint of the sources.
export default defineConfig({
  base: "./",
  plugins: [react()],
  server: { proxy: { "/api": "http://127.0.0.1:8642", "/assets": "http://127.0.0.1:8642", "/runs": "http://127.0.0.1:8642" } },
  build: {
    outDir: "../src/expunge/app/static",
    emptyOutDir: true,
    modulePreload: false,
    rollupOptions: {
      output: {
        entryFileNames: "assets/app.js",
        chunkFileNames: "assets/[name].js",
        assetFileNames: "assets/[name][extname]",
      },
    },
  },
});
