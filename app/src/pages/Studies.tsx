// Studies under way: progress, loss terms, time left; pause, cancel, resume.
import { useState } from "react";
import { Lines } from "../parts/Lines";
import { Choice, Note, Panel, SERIES } from "../parts/basics";
import { ago, duration, plural } from "../format";
import { forget, post, useData } from "../api";
import { address, change, useRoute } from "../route";
import type { Progress, RunList, RunningJob } from "../api-types";
import { runPath } from "../context";

const LIVE = ["running", "paused"];

export function Studies() {
  const { params } = useRoute();
  const list = useData<RunList>("/api/runs", 2000);
  const runs = list.data?.runs ?? [];
  const open = runs.filter((r) => [...LIVE, "interrupted", "failed"].includes(r.state));
  const watched = params.watch ?? open.find((r) => LIVE.includes(r.state))?.name ?? "";
  if (!open.length && !watched) return null;
  return (
    <Panel title="Studies under way">
      <div className="row">
        {open.slice(0, 12).map((r) => (
          <button key={r.name} type="button" aria-pressed={r.name === watched} onClick={() => change({ watch: r.name })}>
            {r.name} <span className={`badge ${r.state}`}>{r.state}</span>
            <span className="muted small">{ago(r.seconds_ago)}</span>
          </button>
        ))}
      </div>
      {watched && <Watch key={watched} run={watched} />}
    </Panel>
  );
}

function Watch(props: { run: string }) {
  const { run } = props;
  const found = useData<Progress>(runPath(run, "/progress"), 1000);
  const [error, setError] = useState("");
  const [busy, setBusy] = useState("");
  const progress = found.data;
  if (found.error) return <Note wrong>{found.error}</Note>;
  if (!progress) return null;
  const act = async (action: "pause" | "resume" | "cancel") => {
    setError("");
    setBusy(action);
    try {
      await post(runPath(run, `/${action}`));
    } catch (e) {
      setError((e as Error).message);
    }
    setBusy("");
    forget("/api/");
  };
  const over = progress.done + progress.failed;
  const share = progress.total ? over / progress.total : 0;
  const live = LIVE.includes(progress.state);
  return (
    <div className="card" data-run={run} data-state={progress.state}>
      <div className="row">
        <b>{run}</b>
        <span className={`badge ${progress.state}`}>{progress.state}</span>
        <span className="muted small">
          {progress.total === null ? plural(over, "job") : `${over} of ${plural(progress.total, "job")}`}
          {progress.failed ? `, ${progress.failed} failed` : ""}
          {progress.elapsed !== null && `, ${duration(progress.elapsed)}`}
          {progress.remaining !== null && `, about ${duration(progress.remaining)} left`}
        </span>
        <span className="grow" />
        {progress.state === "running" && progress.controlled && (
          <button type="button" disabled={busy !== ""} onClick={() => act("pause")}>
            Pause
          </button>
        )}
        {(progress.state === "paused" || progress.state === "interrupted" || progress.state === "failed") && (
          <button type="button" disabled={busy !== ""} onClick={() => act("resume")}>
            Resume
          </button>
        )}
        {live && progress.controlled && (
          <button type="button" className="danger" disabled={busy !== ""} onClick={() => act("cancel")}>
            Cancel
          </button>
        )}
        {(progress.state === "finished" || progress.state === "failed") && (
          <a className="button" href={address("screen", { run })} onClick={() => forget("/api/")}>
            See the results
          </a>
        )}
      </div>
      <div className="progressbar" role="progressbar" aria-label={`progress of ${run}`} aria-valuemin={0} aria-valuemax={100} aria-valuenow={Math.round(100 * share)}>
        <div style={{ width: `${100 * share}%` }} />
      </div>
      {progress.state === "interrupted" && <Note>What is complete is kept; resuming computes the rest and ends with the same numbers.</Note>}
      {error && <Note wrong>{error}</Note>}
      <Jobs progress={progress} />
      <Losses progress={progress} />
      {(progress.state === "failed" || progress.state === "interrupted") && progress.output && <pre className="record" tabIndex={0}>{progress.output}</pre>}
    </div>
  );
}

function Jobs(props: { progress: Progress }) {
  const { jobs } = props.progress;
  const running = jobs.filter((j) => j.state === "running");
  const shown = [...running, ...jobs.filter((j) => j.state === "failed"), ...jobs.filter((j) => j.state === "done").slice(0, 3)];
  if (!shown.length) return null;
  return (
    <table className="plain">
      <tbody>
        {shown.map((j) => (
          <tr key={j.key}>
            <td>
              <span className={`badge ${j.state === "done" ? "finished" : j.state}`}>{j.state}</span>
            </td>
            <td>
              {j.title}
              {j.error && <p className="ne small">{j.error}</p>}
            </td>
            <td className="n muted">{stepOf(j)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

const stepOf = (j: RunningJob) => (j.seconds !== null ? duration(j.seconds) : j.step !== null && j.of !== null ? `step ${j.step} of ${j.of}` : "");

function Losses(props: { progress: Progress }) {
  const { progress } = props;
  const [chosen, setChosen] = useState("");
  const known = progress.jobs.filter((j) => (progress.losses[j.key]?.length ?? 0) > 1);
  if (!known.length) return null;
  const job = known.find((j) => j.key === chosen) ?? known[0];
  const points = progress.losses[job.key];
  const terms = [...new Set(points.flatMap((p) => Object.keys(p.losses)))];
  return (
    <div className="panel">
      <Choice label="Loss terms of" value={job.key} options={known.map((j) => ({ value: j.key, label: j.title }))} onChange={setChosen} />
      <Lines
        name="losses"
        title="loss"
        over="step"
        lines={terms.map((t, i) => ({ name: t, color: SERIES[i % SERIES.length], at: points.map((p) => p.step), values: points.map((p) => p.losses[t] ?? null) }))}
      />
    </div>
  );
}
