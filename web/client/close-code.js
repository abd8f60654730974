/**
 * Why the server closed a connection.
 *
 * @readonly
 * @enum {number}
 */
export const CloseCode = Object.freeze({
  /** The server failed, and will be started again. */
  FAILED: 1011,
  /** The server is shutting down; another one may take over. */
  SHUTDOWN: 1012,
  /** The server has as many users as it takes. */
  FULL: 1013,
  /** Something in the address is wrong. */
  REFUSED: 1008,
  /** The same user connected again, and that connection goes on. */
  TAKEN_OVER: 4001,
  /** The client was silent for too long. */
  TIMEOUT: 4002,
});

/** After these, connecting again by itself would help nobody. @type {Set<number>} */
export const FINAL_CODES = new Set([
  CloseCode.FULL,
  CloseCode.REFUSED,
  CloseCode.TAKEN_OVER,
  CloseCode.TIMEOUT,
]);
