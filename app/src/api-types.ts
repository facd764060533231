// Written by expunge.app.typescript from the OpenAPI schema; do not edit.

export interface Answer {
  id: string;
  group: string | null;
  truth: string | null;
  a: string | null;
  b: string | null;
  /** of the true answer, where its tokenizer can be had */
  tokens: string[] | null;
  /** log-probability of each token of the true answer, nats */
  logp_a: (number | null)[];
  logp_b: (number | null)[];
  loss_a: number | null;
  loss_b: number | null;
}

export interface Answers {
  total: number;
  revealed: boolean;
  rows: Answer[];
}

export interface AttackScore {
  label: string;
  seed: number;
  metric: string;
  title: string;
  split: string;
  unit: string;
  value: number | null;
  status: string;
  reason: string;
  interval: Ends | null;
  gap: number | null;
  n: number | null;
  budget: Record<string, number>;
}

export interface Attacker {
  kind: string;
  metric: string;
  /** where the attacker decides, in the statistic's unit */
  threshold: number;
  /** whether values below the threshold are called members */
  members_below: boolean;
  asked: Sample;
  matched: Sample;
  /** as recorded in scores.json */
  auc: RecordedScore | null;
  /** as recorded in scores.json: share of forget rows called non-members */
  efficacy: RecordedScore | null;
  /** true positive rates of the same attack on retrained models, the largest at a false positive rate of `at` at most */
  retrained: BandCurve;
}

export interface BandCurve {
  /** how many retrained models there are; 0: nothing to draw */
  models: number;
  mean: (number | null)[];
  /** the smallest of them */
  low: (number | null)[];
  /** the largest of them */
  high: (number | null)[];
  /** lower end of the 95 % prediction interval of one further retrained model at this position; `low` where it is unknown, of one model and where all agree */
  least: (number | null)[];
  /** its upper end */
  most: (number | null)[];
  at: number[];
}

export interface BandEnds {
  low: number;
  high: number;
  /** lower end of the 95 % prediction interval of one further retrained model; `low` where it is unknown, of one model and where all agree */
  least: number;
  /** its upper end */
  most: number;
}

export interface Bands {
  /** how many retrained models there are; 0: nothing to draw */
  models: number;
  mean: (number | null)[];
  /** the smallest of them */
  low: (number | null)[];
  /** the largest of them */
  high: (number | null)[];
  /** lower end of the 95 % prediction interval of one further retrained model at this position; `low` where it is unknown, of one model and where all agree */
  least: (number | null)[];
  /** its upper end */
  most: (number | null)[];
}

export interface Catalog {
  methods: Choice[];
  attacks: Choice[];
  benchmarks: Choice[];
  /** JSON Schema of a problem of one's own */
  problem: Record<string, unknown>;
  /** JSON Schema of a study */
  study: Record<string, unknown>;
  /** studies that come with the package, as data */
  embedded: Record<string, Record<string, unknown>>;
}

export interface Charts {
  /** by problem and kind: a Vega-Lite specification */
  problems: Record<string, Record<string, unknown>>;
  /** by kind: how to read it */
  captions: Record<string, string>;
}

export interface Choice {
  name: string;
  /** first sentence of its definition */
  summary: string;
  families: string[];
  source: string;
  /** guarantee of a method, threat model of an attack, license of a benchmark */
  note: string;
  /** JSON Schema of its parameters */
  form: Record<string, unknown>;
}

export interface ClaimLine {
  label: string;
  claimed: string;
  /** the strongest claim whose every requirement was met */
  standing: string;
  /** whether something of the forgotten data was found */
  residue: string;
  sentence: string;
  supports: string[];
  breaks: string[];
  missing: string[];
  proxies: string[];
}

export interface Comparison {
  name: string;
  threshold: number;
  /** whether values above the threshold are called the judged model's */
  above: boolean;
  fpr: number;
  fnr: number;
  advantage: number;
  /** 95 % lower confidence bound, nats; its threshold is chosen on half of the rows, counted on the others. None with fewer than two rows on a side */
  epsilon: number | null;
  /** privacy score of the Unlearning Comparator; 1 is indistinguishable */
  privacy: number;
  /** True where both models are retrained ones: what chance gives */
  null: boolean;
}

export interface Contrast {
  split: string;
  splits: string[];
  n: number | null;
  bars: GroupBars[];
  layers: LayerLine[];
  /** of the similarities that the run measured */
  layer_bands: LayerBand[];
  matrices: Matrix[] | null;
  residuals: Residuals[] | null;
  /** layers whose features were collected of both */
  embeddable: string[];
  /** whether the models' answers were collected */
  texts: boolean;
  /** whether the images that the models make were collected */
  images: boolean;
  /** by view: why there is none */
  missing: Record<string, string>;
}

export interface CurveScore {
  label: string;
  seed: number;
  metric: string;
  title: string;
  split: string;
  unit: string;
  attack: boolean;
  value: number | null;
  budget: Record<string, number>;
  curve: Points;
  /** where the same attack brings retrained models */
  retrained: BandCurve;
}

export interface Drawn {
  id: string;
  group: string | null;
  /** None too where the data of the run is not here */
  prompt: string | null;
  /** PNG as a data address */
  a: string | null;
  b: string | null;
}

export interface Embedding {
  layer: string;
  method: "pca" | "umap";
  aligned: boolean;
  /** PCA: share of the variance along each axis */
  explained: number[] | null;
  /** linear CKA of the two models at this layer, on the rows drawn */
  similarity: number | null;
  points: Point[];
  /** rows of the split; an evenly spaced part is drawn where there are more than 2,000 */
  n: number;
}

export interface Ends {
  low: number;
  high: number;
}

export interface ErrorView {
  error: string;
}

export interface ExamplePage {
  /** rows of the split */
  total: number;
  /** rows that the filter keeps */
  matching: number;
  /** quantities, a column each per model */
  columns: string[];
  ids: string[];
  groups: string[] | null;
  /** by quantity, the first model's values */
  a: Record<string, (number | string | null)[]>;
  b: Record<string, (number | string | null)[]> | null;
  /** by quantity: values that are not finite, over both models */
  undefined: Record<string, number>;
}

export interface ForgetSet {
  total: number;
  scope: string;
  revealed: boolean;
  /** rows of the whole forget set with a row to keep at similarity 0.999 or more */
  duplicates: number | null;
  rows: ForgottenRow[];
  missing: Record<string, string>;
}

export interface ForgottenRow {
  id: string;
  group: string | null;
  /** mean loss of the retrained models, nats; None where unknown */
  difficulty: number | null;
  /** that mean minus the target's loss, nats: what having seen the row is worth */
  memorized: number | null;
  content: string | null;
  /** PNG as a data address */
  image: string | null;
  neighbors: Neighbor[];
}

export interface Gallery {
  total: number;
  revealed: boolean;
  rows: Drawn[];
}

export interface GroupBars {
  metric: string;
  title: string;
  unit: string;
  groups: string[];
  a: (number | null)[];
  b: (number | null)[];
  /** where the retrained models lie, by group */
  retrained: Bands;
}

export interface LayerBand {
  /** how many retrained models there are; 0: nothing to draw */
  models: number;
  mean: (number | null)[];
  /** the smallest of them */
  low: (number | null)[];
  /** the largest of them */
  high: (number | null)[];
  /** lower end of the 95 % prediction interval of one further retrained model at this position; `low` where it is unknown, of one model and where all agree */
  least: (number | null)[];
  /** its upper end */
  most: (number | null)[];
  /** which two kinds of models */
  name: string;
  layers: string[];
}

export interface LayerLine {
  /** which two models */
  name: string;
  layers: string[];
  /** linear CKA; None where the features of a layer do not vary */
  values: (number | null)[];
}

export interface LedgerCertificate {
  sequence: number;
  kind: string;
  body: Record<string, unknown>;
}

export interface LedgerRequest {
  id: string;
  state: string;
  reason: string;
  received_at: string;
  deadline: string | null;
  finished_at: string | null;
  overdue: boolean;
  explanation: string;
}

export interface LedgerView {
  requests: LedgerRequest[];
  counts: Record<string, number>;
  overdue: number;
  certificates: LedgerCertificate[];
  /** whether the log is whole and genuine; None where it was not checked */
  valid: boolean | null;
  /** what was checked, or why not */
  verification: string;
  missing: Record<string, string>;
}

export interface LossPoint {
  step: number;
  losses: Record<string, number | null>;
}

export interface Matrix {
  classes: string[];
  /** rows: the true class; columns: the predicted one */
  counts: number[][];
  /** mean probability of the predicted class; None where nothing was predicted so */
  confidence: ((number | null)[])[] | null;
}

export interface Neighbor {
  id: string;
  group: string | null;
  /** cosine of the features, or of word counts for texts; 1 is the same direction */
  similarity: number;
  content: string | null;
  image: string | null;
}

export interface PlanView {
  faults: string[];
  skipped: string[];
  /** by kind: jobs in all */
  jobs: Record<string, number>;
  /** by kind: jobs that are not done */
  to_do: Record<string, number>;
  problems: Record<string, unknown>[];
  memory: Record<string, unknown>[];
  /** of the jobs to do, as their kinds took in earlier runs here */
  seconds: number | null;
  /** kinds of job that never ran here */
  unknown: string[];
}

export interface Point {
  id: string;
  group: string | null;
  a: [number, number];
  b: [number, number];
  correct_a: boolean | null;
  correct_b: boolean | null;
}

export interface Points {
  /** what is spent, with its unit */
  over: string;
  at: number[];
  /** None where undefined */
  values: (number | null)[];
}

export interface ProblemView {
  name: string;
  family: string;
  scope: string;
  claim: string;
  counts: Record<string, number>;
  columns: TableColumn[];
  rows: TableRow[];
  verdicts: VerdictLine[];
  claims: ClaimLine[];
  curves: CurveScore[];
  attacks: AttackScore[];
  /** by metric: what the attacker has and knows */
  threats: Record<string, string>;
  /** label@seed of every model that was made */
  models: string[];
  /** by label@seed: attacks that kept transcripts */
  transcripts: Record<string, string[]>;
}

export interface Progress {
  run: string;
  state: "running" | "paused" | "interrupted" | "finished" | "failed" | "recorded";
  /** whether this app started it and can pause or cancel it */
  controlled: boolean;
  /** jobs of the study; None where its log does not say */
  total: number | null;
  done: number;
  failed: number;
  /** seconds between the first and the last event of the latest attempt */
  elapsed: number | null;
  /** seconds that the jobs to do took on average; None where unknown */
  remaining: number | null;
  /** those under way, then the latest ones */
  jobs: RunningJob[];
  /** by job, of those under way and the latest */
  losses: Record<string, LossPoint[]>;
  /** the last lines that the process said */
  output: string;
}

export interface RankingView {
  /** metric@split of what was ranked on */
  measures: string[];
  /** what the intervals are over; empty where nothing could be resampled */
  resampled: string;
  standings: StandingLine[];
  /** methods that are not ranked, with the reason */
  excluded: Record<string, string>;
  /** methods within the critical difference of one another */
  alike: string[][];
  notes: string[];
}

export interface RecordedScore {
  metric: string;
  unit: string;
  value: number | null;
  status: string;
  reason: string;
  interval: Ends | null;
  /** mean of the retrained models */
  retrained: number | null;
  gap: number | null;
}

export interface Residuals {
  ids: string[];
  target: number[];
  predicted: (number | null)[];
  /** rows of the split */
  n: number;
}

export interface RunLine {
  name: string;
  state: "running" | "paused" | "interrupted" | "finished" | "failed" | "recorded";
  controlled: boolean;
  modified: string;
  seconds_ago: number;
  report: boolean;
}

export interface RunList {
  runs: RunLine[];
}

export interface RunView {
  name: string;
  created: string;
  command: string;
  passed: string;
  effective: string;
  environment: Record<string, unknown>;
  problems: ProblemView[];
  untested: Record<string, unknown>[];
  /** records that can be fetched */
  files: string[];
  /** why there is no evidence per example; empty where there is */
  evidence: string;
}

export interface RunningJob {
  key: string;
  kind: string;
  title: string;
  state: "running" | "done" | "failed";
  seconds: number | null;
  step: number | null;
  of: number | null;
  error: string | null;
}

export interface Sample {
  name: string;
  /** forget, retain, holdout: of the model; retrained: of a retrained model on the forget set; members, nonmembers: asked about */
  role: string;
  values: number[];
  n: number;
  /** values that are not finite */
  left_out: number;
}

export interface Screen {
  columns: ScreenColumn[];
  rows: ScreenRow[];
  /** runs whose scores cannot be read, with the reason */
  unread: Record<string, string>;
}

export interface ScreenCell {
  value?: number;
  /** 95 % interval of the mean over seeds, or over examples of one seed */
  low?: number;
  high?: number;
  /** mean minus mean of the retrained models */
  gap?: number;
  /** seeds with a value */
  n?: number;
  /** where there is no value */
  status?: string;
  reason?: string;
}

export interface ScreenColumn {
  metric: string;
  split: string;
  title: string;
  unit: string;
  direction: string;
}

export interface ScreenRow {
  run: string;
  problem: string;
  family: string;
  label: string;
  method: string;
  role: "target" | "retrained" | "unlearned";
  seeds: number;
  status: string;
  reason: string;
  /** verdicts: no difference larger than the margin */
  equal: number;
  different: number;
  undecided: number;
  /** by column; None where it was not measured */
  cells: (ScreenCell | null)[];
}

export interface Separation {
  statistic: string;
  /** those that the evidence has */
  statistics: string[];
  unit: string;
  delta: number;
  samples: Sample[];
  /** of the bins of a histogram, from all samples together */
  edges: number[];
  /** whether the bins are equally wide on a logarithmic axis */
  log: boolean;
  /** shares of the forget set by bin, in retrained models */
  density: Bands;
  attackers: Attacker[];
  comparisons: Comparison[];
  /** by part: why there is none */
  missing: Record<string, string>;
}

export interface Session {
  version: string;
  /** name of the folder of runs */
  folder: string;
  /** to be sent with every change */
  token: string;
  /** True where the pages are files and nothing can be started */
  bundle: boolean;
  /** whether the extra for UMAP is installed */
  umap: boolean;
  ledger: boolean;
}

export interface StandingLine {
  label: string;
  /** retraining: the yardstick, no competitor */
  reference: boolean;
  /** by the Borda count, from 1; ties averaged */
  rank: number;
  /** of the rank, over resampled seeds */
  interval: Ends | null;
  /** share of the resamples in which it is alone on rank 1 */
  first: number | null;
  /** of its comparisons, the share won; a tie is one half */
  share: number;
  /** best and worst rank over all Kemeny orders */
  kemeny: Ends;
  /** Plackett and Luce's log-strength; mean 0 over methods */
  strength: number | null;
}

export interface Start {
  study: Record<string, unknown>;
  workers: number | null;
}

export interface StartedRun {
  run: string;
}

export interface TableCell {
  value: number | null;
  low: number | null;
  high: number | null;
  /** how the interval was computed */
  interval: string;
  gap: number | null;
  /** size of the gap in 0 to 1 of the largest of the column */
  distance: number | null;
  n: number | null;
  status: string;
  reason: string;
}

export interface TableColumn {
  metric: string;
  split: string;
  title: string;
  unit: string;
  direction: string;
  definition: string;
  group: "results" | "further" | "across" | "attacks" | "costs";
  low: number | null;
  high: number | null;
  /** where the retrained models lie; None of no model */
  retrained: BandEnds | null;
}

export interface TableRow {
  label: string;
  role: "target" | "retrained" | "unlearned";
  seeds: number[];
  method: string;
  parameters: Record<string, unknown>;
  paper: string;
  notes: string[];
  cells: (TableCell | null)[];
}

export interface Transcript {
  id: string;
  said: Record<string, unknown> | null;
  numbers: Record<string, number>;
}

export interface Transcripts {
  attack: string;
  total: number;
  revealed: boolean;
  rows: Transcript[];
}

export interface VerdictLine {
  label: string;
  metric: string;
  split: string;
  judgement: "no larger difference" | "different" | "undecided";
  margin: number;
  difference: number | null;
  more_seeds: number | null;
  sentence: string;
}

export interface WorstCase {
  statistic: string;
  comparison: Comparison;
}
